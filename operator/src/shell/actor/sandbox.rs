//! The actor of a BatchSandbox.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Address, Context, Mailbox, Mending, Next, answered, guarded, instant};
use crate::pool::InjectionFacts;
use crate::protocol::{FromPool, SandboxRef, ToPool};
use crate::sandbox::{Input, Machine, Output, Setting, statement};
use crate::session::Report;
use crate::shell::clock;
use crate::shell::router::Message;
use crate::view::{ObjectKey, PodView, SandboxView};

/// First and longest wait before an object is read again.
const READ: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What comes into a sandbox's mailbox.
#[derive(Debug)]
pub enum Letter {
    /// Something for the machine.
    Input(Input),
    /// What an executor says, if it still holds when the machine gets it.
    Report(Sealed),
}

impl From<Input> for Letter {
    fn from(input: Input) -> Self {
        Self::Input(input)
    }
}

/// A report that is opened only when the machine gets it: orders may change while it waits, and then it
/// says nothing any more.
pub struct Sealed(Box<dyn FnOnce() -> Option<Report> + Send>);

impl Sealed {
    /// Seals a report.
    pub fn new(open: impl FnOnce() -> Option<Report> + Send + 'static) -> Self {
        Self(Box::new(open))
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").finish_non_exhaustive()
    }
}

/// A grant that is not answered yet.
#[derive(Debug)]
struct Grant {
    number: u64,
    pods: Vec<String>,
}

/// What a sandbox starts from.
#[derive(Debug)]
pub struct Start {
    /// The object.
    pub view: Arc<SandboxView>,
    /// Pods made from its template.
    pub pods: Vec<Arc<PodView>>,
    /// What such pods are injected with.
    pub injection: Arc<InjectionFacts>,
    /// To be written on the object first, see [`Setting::fence`].
    pub fence: Option<String>,
}

/// Runs the machine of one BatchSandbox.
pub struct SandboxActor {
    sandbox: SandboxRef,
    context: Arc<Context>,
    mailbox: Mailbox<Letter>,
    view: Arc<SandboxView>,
    pods: HashMap<String, Arc<PodView>>,
    setting: Setting,
    machine: Option<Machine>,
    mending: Mending,
    /// The pool that was spoken to last; all grants are its.
    pool: Option<String>,
    grants: Vec<Grant>,
    wake: Option<Instant>,
    done: bool,
}

impl std::fmt::Debug for SandboxActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SandboxActor")
            .field("sandbox", &self.sandbox)
            .finish_non_exhaustive()
    }
}

impl SandboxActor {
    /// Starts an actor, whose machine is made at once.
    pub fn start(start: Start, context: &Arc<Context>) -> Address<Letter> {
        let Start {
            view,
            pods,
            injection,
            fence,
        } = start;
        let (address, mailbox) = Mailbox::new(&context.metrics);
        let actor = Self {
            sandbox: SandboxRef {
                key: view.key.clone(),
                uid: view.uid.clone(),
            },
            context: Arc::clone(context),
            mailbox,
            view,
            pods: pods
                .into_iter()
                .map(|pod| (pod.key.name.clone(), pod))
                .collect(),
            setting: Setting {
                injection,
                fence,
                upstream_executors: context.upstream_executors,
            },
            machine: None,
            mending: Mending::default(),
            pool: None,
            grants: Vec::new(),
            wake: None,
            done: false,
        };
        tokio::spawn(actor.run());
        address
    }

    async fn run(mut self) {
        self.context.metrics.actor("batchsandbox", 1);
        self.make();
        'run: loop {
            let wake = if self.machine.is_some() {
                self.wake
            } else {
                self.mending.at
            };
            match self.mailbox.next(wake).await {
                Next::Mail(mut batch) => {
                    for mail in batch.drain(..) {
                        match self.mailbox.open(mail, &self.context.metrics) {
                            Some(Letter::Input(input)) => self.take(input),
                            Some(Letter::Report(Sealed(open))) => {
                                if let Some(report) = open() {
                                    self.decide(Input::Report(report));
                                }
                            }
                            None => break 'run,
                        }
                    }
                    self.mailbox.reuse(batch);
                }
                Next::Wake if self.machine.is_some() => {
                    self.wake = None;
                    self.decide(Input::Wake);
                }
                Next::Wake => {}
            }
            if self.done || self.context.writer.is_closed() {
                break;
            }
            self.mend().await;
        }
        if self.done {
            self.context.tell_router(Message::SandboxDone {
                uid: self.sandbox.uid.clone(),
            });
        }
        self.context.metrics.actor("batchsandbox", -1);
    }

    fn take(&mut self, input: Input) {
        match &input {
            Input::Object(view) | Input::Written(Ok(view)) | Input::StatusWritten(Ok(view))
                if view.uid == self.sandbox.uid && view.version >= self.view.version =>
            {
                self.view = Arc::clone(view);
            }
            Input::Pod(pod) => {
                self.pods.insert(pod.key.name.clone(), Arc::clone(pod));
            }
            Input::PodGone { name, uid }
                if self.pods.get(name).is_some_and(|pod| pod.uid == *uid) =>
            {
                self.pods.remove(name);
            }
            Input::Pool(FromPool::Grant { grant, pods }) => self.grants.push(Grant {
                number: *grant,
                pods: pods.iter().map(|pod| pod.key.name.clone()).collect(),
            }),
            Input::Injection(facts) => self.setting.injection = Arc::clone(facts),
            _ => {}
        }
        self.decide(input);
    }

    fn decide(&mut self, input: Input) {
        if self.done {
            return;
        }
        let Some(machine) = &mut self.machine else {
            return;
        };
        let now = clock::now();
        let metrics = &self.context.metrics;
        match guarded("batchsandbox", metrics, || machine.handle(input, now)) {
            Some(outputs) => {
                for output in outputs {
                    self.perform(output);
                }
            }
            None => self.broken(),
        }
    }

    fn broken(&mut self) {
        self.machine = None;
        self.wake = None;
        let wait = self.mending.broken();
        tracing::error!(batch_sandbox = %self.sandbox.key, again_in = ?wait, "a bug stopped this BatchSandbox; it is begun anew");
    }

    fn make(&mut self) {
        let view = Arc::clone(&self.view);
        let pods = self.pods.values().cloned().collect();
        let setting = self.setting.clone();
        let metrics = &self.context.metrics;
        match guarded("batchsandbox", metrics, || {
            Machine::new(view, pods, setting)
        }) {
            Some(machine) => self.machine = Some(machine),
            None => return self.broken(),
        }
        self.decide(Input::Object(Arc::clone(&self.view)));
    }

    /// A machine made anew starts from the object as it is stored, once nothing of the old one is under
    /// way. Grants that the old one had not answered are answered by what the object says.
    async fn mend(&mut self) {
        if self.machine.is_some() || !self.mending.is_due() {
            return;
        }
        if self.mailbox.underway > 0 {
            self.mending.at = Some(Instant::now() + super::MEND.0);
            return;
        }
        match self.context.writer.read_sandbox(&self.sandbox.key).await {
            Ok(Some(view)) if view.uid == self.sandbox.uid => self.view = Arc::new(view),
            Ok(_) => {
                self.make();
                return self.decide(Input::Absent);
            }
            Err(_) => {
                self.mending.at = Some(Instant::now() + super::MEND.0);
                return;
            }
        }
        self.make();
        if self.machine.is_none() {
            return;
        }
        tracing::info!(batch_sandbox = %self.sandbox.key, "the BatchSandbox is looked after again");
        let view = Arc::clone(&self.view);
        let stated = guarded("batchsandbox", &self.context.metrics, || statement(&view));
        let Some(stated) = stated else {
            return;
        };
        let holds = stated.map_or_else(Vec::new, |(_, statement)| statement.holds);
        let Some(pool) = self.pool.clone() else {
            return;
        };
        for grant in std::mem::take(&mut self.grants) {
            let answer = ToPool::Answer {
                sandbox: self.sandbox.clone(),
                grant: grant.number,
                taken: grant.pods.iter().all(|pod| holds.contains(pod)),
            };
            self.tell_pool(pool.clone(), answer);
        }
    }

    fn tell_pool(&mut self, pool: String, message: ToPool) {
        match &message {
            ToPool::Statement(_) => self.pool = Some(pool.clone()),
            ToPool::Answer { grant, .. } => self.grants.retain(|open| open.number != *grant),
            ToPool::Left { .. } => self.grants.clear(),
        }
        self.context.tell_router(Message::ToPool {
            pool: ObjectKey::new(self.sandbox.key.namespace.clone(), pool),
            message,
        });
    }

    fn perform(&mut self, output: Output) {
        let context = Arc::clone(&self.context);
        let key = self.sandbox.key.clone();
        match output {
            Output::Write(write) => self.mailbox.begin(async move {
                let result = answered(context.writer.write_sandbox(&key, &write)).await;
                Input::Written(result.map(Arc::new))
            }),
            Output::WriteStatus(write) => self.mailbox.begin(async move {
                let result = answered(context.writer.write_sandbox_status(&key, &write)).await;
                Input::StatusWritten(result.map(Arc::new))
            }),
            Output::Delete { version } => {
                let uid = self.sandbox.uid.clone();
                self.mailbox.begin(async move {
                    let delete = context.writer.delete_sandbox(&key, &uid, version);
                    Input::Deleted(answered(delete).await)
                });
            }
            Output::Read => {
                let sandbox = self.sandbox.clone();
                self.mailbox
                    .begin(async move { read(&context, &sandbox).await });
            }
            Output::Assign => context.tell_router(Message::Assign {
                sandbox: self.sandbox.clone(),
            }),
            Output::ToPool { pool, message } => self.tell_pool(pool, message),
            Output::CreatePod { name, pod } => self.mailbox.begin(async move {
                let create = context.writer.create_pod(&key.namespace, &pod);
                Input::PodCreated {
                    name,
                    result: answered(create).await.map(Arc::new),
                }
            }),
            Output::DeletePod { name, uid, reason } => {
                let pod = ObjectKey::new(key.namespace, name.clone());
                self.mailbox.begin(async move {
                    let result = answered(context.writer.delete_pod(&pod, &uid, None)).await;
                    if result.is_ok() {
                        tracing::debug!(%pod, reason, "pod deleted");
                    }
                    Input::PodDeleted { name, uid, result }
                });
            }
            Output::Sessions(orders) => context.executors.set(&self.sandbox.uid, orders),
            Output::Event(event) => {
                let uid = Some(self.sandbox.uid.as_str());
                context.events.publish("BatchSandbox", &key, uid, event);
            }
            Output::Note(note) => context.metrics.sandbox_note(&note),
            Output::WakeAt(then) => self.wake = Some(instant(then, clock::now())),
            Output::Done => {
                context.executors.set(&self.sandbox.uid, Vec::new());
                self.done = true;
            }
        }
    }
}

/// Reads the object until there is an answer that says something.
async fn read(context: &Context, sandbox: &SandboxRef) -> Input {
    let mut wait = READ.0;
    loop {
        match context.writer.read_sandbox(&sandbox.key).await {
            Ok(Some(view)) if view.uid == sandbox.uid => return Input::Object(Arc::new(view)),
            Ok(_) => return Input::Absent,
            Err(error) => {
                tracing::warn!(batch_sandbox = %sandbox.key, %error, "cannot be read; trying again");
                context.metrics.failed("read");
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(READ.1);
    }
}
