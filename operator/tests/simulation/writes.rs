//! Writes on their way: delayed, lost, answered or not, or sent by one who does not lead any more.

use std::sync::Arc;

use opensandbox_api::labels;
use opensandbox_api::v1alpha1::PoolStatus;
use opensandbox_operator::shell::writer::sandbox_patch;
use opensandbox_operator::view::Version;
use opensandbox_operator::write::{SandboxStatusWrite, SandboxWrite, WriteError};
use opensandbox_operator::{pool, sandbox};
use serde_json::{Value, json};

use crate::kubelet::PodStep;
use crate::replica::{Actor, Mail};
use crate::store::{self, Kind};
use crate::views;
use crate::world::{Event, World};

/// What is asked of the API server.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Sandbox {
        name: String,
        write: SandboxWrite,
    },
    SandboxStatus {
        name: String,
        write: SandboxStatusWrite,
    },
    DeleteSandbox {
        name: String,
        version: Version,
    },
    Read {
        name: String,
    },
    CreatePod {
        name: String,
        pod: Arc<Value>,
    },
    Retire {
        name: String,
        uid: String,
        version: Version,
        reason: &'static str,
    },
    DeletePod {
        name: String,
        uid: String,
        version: Option<Version>,
        reason: &'static str,
    },
    Restart {
        name: String,
        uid: String,
        version: Version,
        containers: Vec<String>,
        record: String,
    },
    PoolStatus {
        name: String,
        version: Version,
        status: Box<PoolStatus>,
    },
}

/// A write under way.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) replica: u32,
    pub(crate) actor: Actor,
    pub(crate) op: Op,
    /// Whoever sent it does not lead any more.
    pub(crate) zombie: bool,
    /// The answer does not get back.
    mute: bool,
}

type Answer = Result<Arc<Value>, WriteError>;

impl World {
    pub(crate) fn issue(&mut self, replica: u32, actor: Actor, op: Op) {
        let write = Write {
            replica,
            actor,
            op,
            zombie: false,
            mute: false,
        };
        let wait = self.latency().max(1);
        let is_read = matches!(write.op, Op::Read { .. });
        if !is_read && self.fault(25) {
            // It never arrives.
            self.answer_later(&write, Err(unclear()), wait);
            return;
        }
        let mute = !is_read && self.fault(35);
        let late = mute && !matches!(write.op, Op::CreatePod { .. }) && self.rng.chance(300);
        if late {
            // No answer in time, and yet it happens afterwards.
            self.answer_later(&write, Err(unclear()), wait);
        }
        self.write_count += 1;
        let id = self.write_count;
        self.writes.insert(
            id,
            Write {
                mute,
                ..write.clone()
            },
        );
        if mute && !late {
            let delay = wait + self.rng.between(0, 50);
            self.answer_later(&write, Err(unclear()), delay);
        }
        let delay = if late { 2 * wait } else { wait };
        self.after(delay, Event::Apply(id));
    }

    /// A write reaches the API server.
    pub(crate) fn apply(&mut self, id: u64) {
        let Some(write) = self.writes.remove(&id) else {
            return;
        };
        let result = self.checked(&write);
        let verdict = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        self.say(|| {
            let from = if write.zombie { "zombie" } else { "" };
            format!("{from} {} {:?}: {verdict}", write.replica, Brief(&write.op))
        });
        if !write.mute && !write.zombie {
            let wait = self.latency();
            self.answer_later(&write, result, wait);
        }
        if self.profile.crashes && !self.calm && self.rng.chance(6) {
            self.crash();
        }
    }

    /// What an operator writes, at once and with no answer.
    #[cfg(test)]
    pub(crate) fn do_now(&mut self, actor: Actor, op: Op) {
        let write = Write {
            replica: 0,
            actor,
            op,
            zombie: false,
            mute: true,
        };
        self.checked(&write).expect("the write is possible");
    }

    fn checked(&mut self, write: &Write) -> Answer {
        self.check_before(write);
        let result = self.carry_out(&write.op);
        if result.is_ok() {
            self.check_after(write);
        }
        result
    }

    fn carry_out(&mut self, op: &Op) -> Answer {
        let stamp = self.stamp();
        match op {
            Op::Sandbox { name, write } => {
                let patch = sandbox_patch(write);
                self.store.patch(Kind::Sandbox, name, &patch)
            }
            Op::SandboxStatus { name, write } => {
                let patch = json!({
                    "metadata": {"resourceVersion": write.version.to_string()},
                    "status": *write.status,
                });
                self.store.put_status(Kind::Sandbox, name, &patch)
            }
            Op::DeleteSandbox { name, version } => {
                let version = Some(version.0);
                self.store
                    .delete(Kind::Sandbox, name, None, version, &stamp)
                    .map(|()| Arc::default())
            }
            Op::Read { name } => {
                let found = self.store.get(Kind::Sandbox, name).cloned();
                found.ok_or(WriteError::NotFound)
            }
            Op::CreatePod { pod, .. } => {
                if self.users.quota {
                    return Err(WriteError::Refused {
                        reason: "Forbidden".to_owned(),
                        message: "exceeded quota: pods".to_owned(),
                    });
                }
                self.store.create(Kind::Pod, (**pod).clone(), &stamp)
            }
            Op::Retire {
                name,
                uid,
                version,
                reason,
            } => {
                let patch = json!({"metadata": {
                    "uid": uid,
                    "resourceVersion": version.to_string(),
                    "labels": {labels::RETIRING: reason},
                }});
                self.store.patch(Kind::Pod, name, &patch)
            }
            Op::DeletePod {
                name, uid, version, ..
            } => {
                let version = version.map(|version| version.0);
                self.store
                    .delete(Kind::Pod, name, Some(uid), version, &stamp)
                    .map(|()| Arc::default())
            }
            Op::Restart {
                name,
                uid,
                version,
                containers,
                record,
            } => {
                let patch = json!({"metadata": {
                    "uid": uid,
                    "resourceVersion": version.to_string(),
                    "annotations": {labels::RESTART_RECORD: record},
                }});
                let result = self.store.patch(Kind::Pod, name, &patch);
                if result.is_ok() && !self.fault(200) {
                    let wait = self.rng.between(50, 2_000);
                    let step = PodStep::Restart(containers.clone());
                    self.after(wait, Event::Pod(uid.clone(), step));
                }
                result
            }
            Op::PoolStatus {
                name,
                version,
                status,
            } => {
                let patch = json!({
                    "metadata": {"resourceVersion": version.to_string()},
                    "status": **status,
                });
                self.store.put_status(Kind::Pool, name, &patch)
            }
        }
    }

    fn answer_later(&mut self, write: &Write, answer: Answer, wait: i64) {
        let mail = mail(write, answer);
        let event = Event::Answer(write.replica, write.actor.clone(), Box::new(mail));
        self.after(wait, event);
    }

    /// The leader is gone: killed, paused for good, or handed over.
    pub(crate) fn crash(&mut self) {
        if self.calm {
            return;
        }
        let Some(replica) = self.replica.take() else {
            return;
        };
        let id = replica.id;
        let paused = self.profile.zombies && self.rng.chance(500);
        let resigned = !paused && self.rng.chance(250);
        self.say(|| format!("replica {id} ends: paused {paused}, resigned {resigned}"));
        for (number, mut write) in std::mem::take(&mut self.writes) {
            write.zombie = true;
            if paused {
                // Whatever was sent arrives when nobody expects it: the earlier event finds nothing.
                self.write_count += 1;
                self.writes.insert(self.write_count, write);
                let wait = self.rng.between(0, 20_000);
                self.after(wait, Event::Apply(self.write_count));
            } else if resigned || self.rng.chance(500) {
                // It was on its way, and arrives before anybody else leads.
                self.writes.insert(number, write);
                self.apply(number);
            }
        }
        let fence = (!resigned).then(|| format!("replica-{id}"));
        let wait = self.rng.between(0, 3_000);
        self.after(wait, Event::Start(fence));
        let wait = self.rng.between(2_000, 20_000);
        self.after(wait, Event::Crash);
    }
}

fn unclear() -> WriteError {
    WriteError::Unclear {
        message: "timed out".to_owned(),
    }
}

/// The answer as the actor hears it.
fn mail(write: &Write, answer: Answer) -> Mail {
    let nothing = |answer: Answer| answer.map(|_| ());
    let pod = |answer: Answer| answer.map(|raw| Arc::new(views::pod(&raw)));
    let object = |answer: Answer| answer.map(|raw| Arc::new(views::sandbox(&raw)));
    let of_pool = matches!(write.actor, Actor::Pool(_));
    match write.op.clone() {
        Op::Sandbox { .. } => Mail::Sandbox(sandbox::Input::Written(object(answer))),
        Op::SandboxStatus { .. } => Mail::Sandbox(sandbox::Input::StatusWritten(object(answer))),
        Op::DeleteSandbox { .. } => Mail::Sandbox(sandbox::Input::Deleted(nothing(answer))),
        Op::Read { .. } => Mail::Sandbox(match object(answer) {
            Ok(view) if matches!(&write.actor, Actor::Sandbox(uid) if *uid == view.uid) => {
                sandbox::Input::Object(view)
            }
            Ok(_) | Err(_) => sandbox::Input::Absent,
        }),
        Op::CreatePod { name, .. } if of_pool => Mail::Pool(pool::Input::Created {
            name,
            result: pod(answer),
        }),
        Op::CreatePod { name, .. } => Mail::Sandbox(sandbox::Input::PodCreated {
            name,
            result: pod(answer),
        }),
        Op::Retire { name, uid, .. } => Mail::Pool(pool::Input::Retired {
            name,
            uid,
            result: pod(answer),
        }),
        Op::DeletePod { name, uid, .. } if of_pool => Mail::Pool(pool::Input::Deleted {
            name,
            uid,
            result: nothing(answer),
        }),
        Op::DeletePod { name, uid, .. } => Mail::Sandbox(sandbox::Input::PodDeleted {
            name,
            uid,
            result: nothing(answer),
        }),
        Op::Restart { name, uid, .. } => Mail::Pool(pool::Input::Restarted {
            name,
            uid,
            result: pod(answer),
        }),
        Op::PoolStatus { .. } => {
            let version = answer.map(|raw| {
                let version = store::text(&raw, "/metadata/resourceVersion");
                Version(version.and_then(|text| text.parse().ok()).unwrap_or(0))
            });
            Mail::Pool(pool::Input::StatusWritten(version))
        }
    }
}

/// A write as one line of the story.
struct Brief<'a>(&'a Op);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Op::CreatePod { name, .. } => write!(f, "CreatePod {name}"),
            Op::SandboxStatus { name, write } => {
                write!(f, "SandboxStatus {name} at v{}", write.version)
            }
            Op::PoolStatus { name, version, .. } => write!(f, "PoolStatus {name} at v{version}"),
            op => op.fmt(f),
        }
    }
}
