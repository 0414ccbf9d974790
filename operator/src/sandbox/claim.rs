//! Asking a pool for pods and taking them: statements, grants, answers.
//!
//! A grant is taken with one write, which names its pods in `alloc-status`. Only pods of a grant are
//! ever written there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use opensandbox_api::conditions::{self, batch_sandbox};

use super::Output;
use super::allocation::{Allocation, ENTRY_OVERHEAD, MAX_BYTES};
use super::facts::{has_pool_finalizer, may_have_tasks, releases};
use super::machine::{Machine, Pod, event};
use super::record::{MAX_TASKS, Record};
use super::source::{Choice, Source};
use crate::protocol::{FromPool, Return, SandboxRef, Standing, Statement, ToPool, Waiting};
use crate::view::{PodView, SandboxView};

/// Characters of a pod's name after its pool's: a dash and five of the suffix.
const SUFFIX: usize = 6;

/// What is asked of a pool, and what it said.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// The last statement.
    pub(super) said: Option<Statement>,
    /// How many pods are missing, whether or not they may be asked for now.
    pub(super) wants: u32,
    /// Place in the queue.
    queued: Timestamp,
    /// Whether every sandbox has had its pod.
    satisfied: bool,
    /// Why the pool gives nothing.
    pub(super) waiting: Option<Waiting>,
    /// A grant that is not answered.
    pub(super) grant: Option<Grant>,
    /// Answers that follow the next statement.
    pub(super) answers: Vec<(u64, bool)>,
    /// The choice of a pool.
    pub(super) choice: Choice,
    /// Why no pool fits.
    pub(super) no_pool: Option<String>,
    /// Another source that the spec names, and that is not followed while pods are held.
    pub(super) rejected_source: Option<Source>,
}

/// Pods that a pool offers.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) id: u64,
    pub(super) pods: Vec<Arc<PodView>>,
    /// Those that were lost meanwhile, and why.
    lost: BTreeMap<String, String>,
}

impl Claim {
    pub(super) fn new(view: &SandboxView) -> Self {
        Self {
            said: None,
            wants: 0,
            queued: queued(view),
            satisfied: false,
            waiting: None,
            grant: None,
            answers: Vec::new(),
            choice: Choice::default(),
            no_pool: None,
            rejected_source: None,
        }
    }

    /// When a choice is to be asked for again.
    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        self.choice.not_before.filter(|at| *at > now)
    }
}

/// Place in the queue, as far as the object tells: one that holds pods and wants more queues since it
/// began to wait, others since they were created.
fn queued(view: &SandboxView) -> Timestamp {
    let waits = conditions::find(
        &view.status.conditions,
        batch_sandbox::POOL_ALLOCATION_PENDING,
    );
    match waits {
        Some(waits) if waits.status == "True" && view.alloc_status.is_some() => {
            waits.last_transition_time.0.max(view.created)
        }
        _ => view.created,
    }
}

/// What the word of an object counts where another names the same pod.
fn standing(view: &SandboxView, readable: bool) -> Standing {
    Standing {
        made_out: !readable,
        created: view.created,
    }
}

/// What an object says about its pool, before its machine runs: `None` if it names none, or none that is
/// resolved. An object whose annotations cannot be read holds whatever can be made out; one whose spec
/// cannot be read holds what its annotations name, and asks for nothing.
///
/// Pods in `alloc-release` whose tasks are not proved stopped count as held: that proof is the machine's.
pub fn statement(view: &SandboxView) -> Option<(String, Statement)> {
    let source = Source::of(view);
    let pool = source.pool()?;
    let given_up = view.deleting && !has_pool_finalizer(view);
    let (held, readable) = match Allocation::read(view) {
        _ if given_up => (Allocation::default(), true),
        Ok(held) => (held, true),
        Err(_) => (Allocation::made_out(view), false),
    };
    let proved = !may_have_tasks(view);
    let mut holds = Vec::new();
    let mut returns = Vec::new();
    for (_, name) in held.current() {
        if proved && readable && (view.deleting || held.release.contains(name)) {
            returns.push(Return {
                pod: name.clone(),
                clean: true,
            });
        } else {
            holds.push(name.clone());
        }
    }
    let spec = view.spec.as_ref().ok();
    let replicas = spec.and_then(|spec| u32::try_from(spec.replicas).ok());
    let wants = if let (Some(spec), Some(replicas)) = (spec, replicas)
        && readable
        && !view.deleting
    {
        let record = Record::read(view.status.task_record.as_deref());
        let upstream = view.status.task_record.is_none() && spec.task_template.is_some();
        let refilled = (0_u32..replicas)
            .zip(&held.entries)
            .filter(|(index, name)| {
                held.released.contains(*name) && !upstream && !record.has_ended(*index)
            })
            .count();
        let shards = usize::try_from(replicas)
            .unwrap_or(usize::MAX)
            .min(held.entries.len() + room(pool, &held, releases(spec)))
            .min(MAX_TASKS);
        let missing = shards.saturating_sub(held.entries.len()) + refilled;
        u32::try_from(missing).unwrap_or(u32::MAX)
    } else {
        0
    };
    let statement = Statement {
        sandbox: SandboxRef {
            key: view.key.clone(),
            uid: view.uid.clone(),
        },
        standing: standing(view, readable),
        queued: queued(view),
        holds,
        returns,
        wants,
        replicas: replicas.unwrap_or(0),
    };
    Some((pool.to_owned(), statement))
}

/// For how many more pods of this pool the annotations have room.
fn room(pool: &str, held: &Allocation, releases: bool) -> usize {
    let entry = pool.len() + SUFFIX + ENTRY_OVERHEAD;
    // A pod that is given back while its sandbox lives is named three times.
    let times = if releases { 3 } else { 1 };
    let used: usize = held
        .entries
        .iter()
        .map(|pod| pod.len() + ENTRY_OVERHEAD)
        .sum();
    MAX_BYTES.saturating_sub(used * times) / (entry * times)
}

impl Machine {
    pub(super) fn room(&self, pool: &str) -> usize {
        room(pool, &self.held, self.releases())
    }

    /// Takes what the pool says.
    pub(super) fn pool_says(&mut self, message: FromPool, now: Timestamp, out: &mut Vec<Output>) {
        if self.source.pool().is_none() {
            // It has been told that this sandbox left.
            return;
        }
        match message {
            FromPool::Grant { grant, pods } => self.granted(grant, pods),
            FromPool::Recycled { pod } => self.recycled(&pod),
            FromPool::Pod(view) => self.pod_changed(view),
            FromPool::Lost { pod, cause } => self.pod_lost(&pod, &cause, now, out),
            FromPool::Waiting(waiting) => self.claim.waiting = waiting,
        }
    }

    fn granted(&mut self, id: u64, pods: Vec<Arc<PodView>>) {
        match &self.claim.grant {
            Some(grant) if grant.id == id => {}
            Some(_) => self.claim.answers.push((id, false)),
            None => {
                self.claim.grant = Some(Grant {
                    id,
                    pods,
                    lost: BTreeMap::new(),
                });
            }
        }
    }

    fn pod_changed(&mut self, view: Arc<PodView>) {
        let newer = |before: &PodView| before.uid != view.uid || before.version < view.version;
        if let Some(pod) = self.pods.get_mut(&view.key.name) {
            if pod.view.as_deref().is_none_or(newer) {
                pod.view = Some(view);
            }
        } else if let Some(grant) = &mut self.claim.grant {
            for pod in &mut grant.pods {
                if pod.key.name == view.key.name && newer(pod) {
                    *pod = Arc::clone(&view);
                }
            }
        }
    }

    fn pod_lost(&mut self, name: &str, cause: &str, now: Timestamp, out: &mut Vec<Output>) {
        let cause = super::text::cut(cause, 512);
        if let Some(grant) = &mut self.claim.grant
            && grant.pods.iter().any(|pod| pod.key.name == name)
        {
            grant.lost.insert(name.to_owned(), cause.clone());
        }
        let Some(pod) = self.pods.get_mut(name).filter(|pod| pod.lost.is_none()) else {
            return;
        };
        pod.lost = Some(cause.clone());
        let touched = pod.touched;
        let leaves = pod.leaving.is_some() || self.view.deleting;
        let Some(index) = self.index_of(name).filter(|_| !leaves) else {
            return;
        };
        if self.is_over(index) {
            return;
        }
        out.push(event(
            true,
            conditions::reason::POD_LOST,
            "Replace",
            &format!("pod {name} of sandbox {index} is lost: {cause}"),
        ));
        if touched {
            self.task_lost_its_pod(index, name, &cause, now, out);
        }
    }

    /// Places without a pod in this allocation, by index.
    pub(super) fn open_places(&self, held: &Allocation) -> Vec<usize> {
        let shards = usize::try_from(self.shards()).unwrap_or(usize::MAX);
        let open = |(index, name): (usize, &String)| {
            let pod = self.pods.get(name);
            let shard = u32::try_from(index).unwrap_or(u32::MAX);
            if self.table.is_removed(shard) {
                // It is begun anew once the place is free.
                return false;
            }
            if held.released.contains(name) {
                // Durably: only then its task is begun anew, as another attempt.
                return self.held.released.contains(name) && !self.table.has_ended(shard);
            }
            pod.is_some_and(|pod| pod.lost.is_some() && pod.leaving.is_none())
                && !(self.releases() && self.table.has_ended(shard))
        };
        let mut places: Vec<usize> = held
            .entries
            .iter()
            .enumerate()
            .take(shards)
            .filter(|place| open(*place))
            .map(|(index, _)| index)
            .collect();
        places.extend(held.entries.len()..shards);
        places
    }

    /// Declines a grant that cannot be taken any more, once it is certain that it was not.
    pub(super) fn settle_grant(&mut self, now: Timestamp) {
        let places = self.open_places(&self.held);
        let wants = u32::try_from(places.len()).unwrap_or(u32::MAX);
        self.claim.wants = if self.may_ever_ask(now) { wants } else { 0 };
        if self.writer.carries_grant() {
            return;
        }
        let Some(grant) = &self.claim.grant else {
            return;
        };
        let names: BTreeSet<&str> = grant.pods.iter().map(|pod| pod.key.name.as_str()).collect();
        let takes = self.claim.wants > 0
            && grant.lost.is_empty()
            && !names.is_empty()
            && names.len() == grant.pods.len()
            && names.len() <= places.len()
            && !self
                .held
                .current()
                .any(|(_, own)| names.contains(own.as_str()))
            && !self.is_held_up(now);
        if !takes {
            let id = grant.id;
            self.claim.grant = None;
            self.claim.answers.push((id, false));
        }
    }

    /// Whether pods may be asked for at all.
    fn may_ever_ask(&self, now: Timestamp) -> bool {
        self.source.pool().is_some()
            && !self.view.deleting
            && self.quarantine().is_none()
            && !self.has_expired(now)
    }

    /// Whether an earlier claim was refused, and the next is not yet to be tried.
    fn is_held_up(&self, now: Timestamp) -> bool {
        self.writer.refused.is_some() && self.writer.not_before.is_some_and(|at| at > now)
    }

    /// Whether the object has to be marked before it may ask for anything: see [`super::Setting::fence`].
    pub(super) fn lacks_fence(&self) -> bool {
        self.setting.fence.is_some() && self.view.fence != self.setting.fence
    }

    /// Says where the sandbox stands, if that has changed, and answers grants.
    pub(super) fn say(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let Some(pool) = self.source.pool().map(str::to_owned) else {
            return;
        };
        if self.writer.is_overtaken_by(self.view.version) {
            // What the object holds may be more than is known here: the answer says so in a moment.
            return;
        }
        if self.claim.wants == 0 {
            self.claim.satisfied = true;
            self.claim.waiting = None;
        } else if self.claim.satisfied {
            self.claim.satisfied = false;
            self.claim.queued = now;
        }
        let fenced_off = self.claim.wants > 0 && self.lacks_fence();
        if fenced_off && self.claim.said.is_none() && self.writer.refused.is_none() {
            // The pool holds its hands still until this sandbox has spoken.
            return;
        }
        let wants = if fenced_off || self.is_held_up(now) {
            0
        } else {
            self.claim.wants
        };
        let statement = self.statement_with(wants);
        if self.claim.said.as_ref() != Some(&statement) {
            self.claim.said = Some(statement.clone());
            out.push(Output::ToPool {
                pool: pool.clone(),
                message: ToPool::Statement(statement),
            });
        }
        for (grant, taken) in std::mem::take(&mut self.claim.answers) {
            let message = self.answer(grant, taken);
            out.push(Output::ToPool {
                pool: pool.clone(),
                message,
            });
        }
    }

    fn statement_with(&self, wants: u32) -> Statement {
        let mut holds = Vec::new();
        let mut returns = Vec::new();
        for (_, name) in self.held.current() {
            let durable = self.view.deleting || self.held.release.contains(name);
            let leaving = self.pods.get(name).and_then(|pod| pod.leaving.as_ref());
            match leaving.and_then(|leaving| leaving.proof) {
                Some(clean) if durable => returns.push(Return {
                    pod: name.clone(),
                    clean,
                }),
                _ => holds.push(name.clone()),
            }
        }
        Statement {
            sandbox: self.reference(),
            standing: standing(&self.view, self.unreadable.is_none()),
            queued: self.claim.queued,
            holds,
            returns,
            wants,
            replicas: self.replicas(),
        }
    }

    /// Tells the pool, if there is one, that this sandbox left, and before that declines its grant.
    pub(super) fn leave_pool(&mut self, out: &mut Vec<Output>) {
        let Some(pool) = self.source.pool().map(str::to_owned) else {
            return;
        };
        if let Some(grant) = self.claim.grant.take() {
            let message = self.answer(grant.id, false);
            out.push(Output::ToPool {
                pool: pool.clone(),
                message,
            });
        }
        let message = ToPool::Left {
            sandbox: self.reference(),
        };
        out.push(Output::ToPool { pool, message });
    }

    /// The pods of a grant are durably the sandbox's.
    pub(super) fn took(&mut self, id: u64, now: Timestamp, out: &mut Vec<Output>) {
        let Some(grant) = self.claim.grant.take_if(|grant| grant.id == id) else {
            return;
        };
        for view in grant.pods {
            self.pods.insert(view.key.name.clone(), Pod::fresh(view));
        }
        self.claim.answers.push((id, true));
        for (name, cause) in grant.lost {
            self.pod_lost(&name, &cause, now, out);
        }
    }
}
