//! The watch of our executor: events as they come, until the order is another one or there is nothing
//! left to wait for.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use opensandbox_api::token::Request;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::connection::{self, Connection, broken};
use super::conversation::{Conversation, another, within};
use super::fault::Fault;
use super::lanes::Permit;
use super::lines::Lines;
use super::list::Told;
use super::pace::Pace;
use super::sessions::Numbered;
use super::{Order, Work};

/// Longest line: an event with one task, which an object of the API server had room for (1.5 MiB).
const LINE: usize = 2 * 1024 * 1024;
/// An order that was answered but does not show is given again after this: longer than a task that has
/// to leave first usually takes.
const AGAIN: Duration = Duration::from_secs(15);
const TARGET: &str = "/tasks?watch=true";

/// An open watch.
struct Stream {
    body: Incoming,
    lines: Lines,
    told: Told,
    pace: Pace,
    opened: Instant,
    /// When the last line came.
    heard: Instant,
    /// Before this nothing more is read.
    resume: Instant,
    /// When others get a turn.
    turn: Instant,
}

impl Stream {
    /// Counts something that was read, and puts the next off if it was too much.
    fn count(&mut self, bytes: usize) {
        let wait = self.pace.count(bytes, self.opened.elapsed());
        if !wait.is_zero() {
            self.resume = self.resume.max(Instant::now() + wait);
        }
    }
}

impl Conversation {
    /// Watches. `Ok`: there is another order, the order is settled or to be given again, or others want
    /// to watch.
    pub(super) async fn watch(
        &mut self,
        order: &Order,
        orders: &mut watch::Receiver<Numbered>,
        mut connection: Connection,
        _place: Permit,
    ) -> Result<(), Fault> {
        let body = self.begin_watch(order, &mut connection).await?;
        let now = Instant::now();
        let settings = &self.shared.settings;
        let (quiet, turn) = (settings.bookmark * 3, settings.turn);
        // After a restart many wait for a first look at the executor of theirs.
        let first = if self.tasks.is_none() {
            turn / 10
        } else {
            turn
        };
        let mut stream = Stream {
            body,
            lines: Lines::new(LINE, self.shared.memory.share()),
            told: Told::default(),
            pace: Pace::new(Duration::ZERO),
            opened: now,
            heard: now,
            resume: now,
            turn: now + first,
        };
        loop {
            self.take_lines(&mut stream, order)?;
            if self.synced.is_some() && self.is_settled(&order.work) {
                return Ok(());
            }
            let again = self.again(&stream, &order.work);
            let due = [
                self.due,
                again,
                Some(stream.heard + quiet),
                Some(stream.turn),
                (stream.resume > Instant::now()).then_some(stream.resume),
            ];
            let next = due.into_iter().flatten().min().unwrap_or(stream.turn);
            tokio::select! {
                () = another(orders) => return Ok(()),
                Some(tail) = self.tails.coming.next(), if !self.tails.coming.is_empty() => {
                    self.tails.arrived(tail);
                    if self.tails.coming.is_empty() {
                        // Also if the report has gone out without it.
                        self.due = Some(Instant::now());
                        self.tell_now();
                    }
                }
                frame = stream.body.frame(), if stream.resume <= Instant::now() => match frame {
                    None => return Err(Fault::Unreachable("ended the watch".to_owned())),
                    Some(Err(error)) => return Err(broken(&error)),
                    Some(Ok(frame)) => {
                        let data = frame.into_data().unwrap_or_default();
                        // Crumbs cost as much as lines do.
                        stream.count(0);
                        stream.lines.push(&data).map_err(unreadable)?;
                    }
                },
                () = sleep_until(next) => {
                    let now = Instant::now();
                    if now >= stream.heard + quiet {
                        let seconds = quiet.as_secs_f64();
                        return Err(Fault::Unreachable(format!("no word within {seconds} s")));
                    }
                    if self.due.is_some_and(|due| due <= now) {
                        self.tell_now();
                    }
                    if again.is_some_and(|again| again <= now) {
                        return Ok(());
                    }
                    if stream.turn <= now {
                        if self.synced.is_some() && self.shared.lanes.is_crowded() {
                            return Ok(());
                        }
                        stream.turn = now + turn;
                    }
                }
            }
        }
    }

    async fn begin_watch(
        &mut self,
        order: &Order,
        connection: &mut Connection,
    ) -> Result<Incoming, Fault> {
        let request = Request {
            pod_uid: &order.pod_uid,
            method: "GET",
            target: TARGET,
        };
        let leave = self.shared.credentials.leave(self.key, &request, b"")?;
        let limit = self.shared.settings.order;
        let answer = async {
            let response = connection.ask("GET", TARGET, Bytes::new(), &leave).await?;
            connection::accepted(response, &self.shared.memory).await
        };
        within(limit, answer).await
    }

    /// When the order has to be given again, if nothing happens before.
    fn again(&self, stream: &Stream, work: &Work) -> Option<Instant> {
        let proved = || self.doubts_empty(work).unwrap_or(stream.opened);
        let unproved = self.withheld.then(proved);
        let open = self.is_open(work).then(|| stream.opened + AGAIN);
        [unproved, open].into_iter().flatten().min()
    }

    fn take_lines(&mut self, stream: &mut Stream, order: &Order) -> Result<(), Fault> {
        let mut changed = false;
        while stream.resume <= Instant::now() {
            let Some(line) = stream.lines.next().map_err(unreadable)? else {
                break;
            };
            stream.heard = Instant::now();
            changed |= stream.told.take(&line)?;
            stream.count(line.len());
        }
        if changed && let Some(tasks) = stream.told.tasks() {
            self.synced.get_or_insert_with(Instant::now);
            let tasks = tasks.clone();
            self.hear(tasks, order);
        }
        Ok(())
    }
}

fn unreadable(error: super::lines::Error) -> Fault {
    Fault::Unreachable(error.to_string())
}
