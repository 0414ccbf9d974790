//! The actor of a Pool.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Address, Context, Mailbox, Mending, Next, answered, guarded, instant};
use crate::pool::{InjectionFacts, Input, Ledger, Note, Output};
use crate::protocol::{FromPool, SandboxRef, Statement, ToPool};
use crate::shell::clock;
use crate::shell::router::Message;
use crate::view::{ObjectKey, PodView, PoolView};

/// For how long at most pods on stock give way to what BatchSandboxes wait for: longer than a crowd takes
/// that finds a pod each.
const STOCK: Duration = Duration::from_secs(3);
/// The same where fewer pods are ready than half of `bufferMin`: soon somebody would have to wait.
const LOW: Duration = Duration::from_millis(200);
/// And for the Pool's status.
const STATUS: Duration = Duration::from_secs(1);

/// What a ledger is made from; kept current, so that it can be made anew.
#[derive(Debug)]
pub struct Known {
    /// The object, if there is one.
    pub pool: Option<Arc<PoolView>>,
    /// What pods are injected with.
    pub injection: Arc<InjectionFacts>,
    /// Pods with the pool's label, by name.
    pub pods: HashMap<String, Arc<PodView>>,
    /// The last statement of each sandbox.
    pub statements: BTreeMap<SandboxRef, Statement>,
}

impl Known {
    fn note(&mut self, input: &Input) {
        match input {
            Input::Pool(view) => self.pool = Some(Arc::clone(view)),
            Input::PoolAbsent => self.pool = None,
            Input::Injection(facts) => self.injection = Arc::clone(facts),
            Input::Pod(view) => {
                self.pods.insert(view.key.name.clone(), Arc::clone(view));
            }
            Input::PodGone { name, uid }
                if self.pods.get(name).is_some_and(|pod| pod.uid == *uid) =>
            {
                self.pods.remove(name);
            }
            Input::Sandbox(ToPool::Statement(statement)) => {
                self.statements
                    .insert(statement.sandbox.clone(), statement.clone());
            }
            Input::Sandbox(ToPool::Left { sandbox }) => {
                self.statements.remove(sandbox);
            }
            _ => {}
        }
    }

    fn is_nothing(&self) -> bool {
        self.pool.is_none() && self.pods.is_empty() && self.statements.is_empty()
    }

    fn ledger(&self, key: &ObjectKey) -> Ledger {
        Ledger::new(
            key.clone(),
            self.pool.clone(),
            Arc::clone(&self.injection),
            self.pods.values().cloned().collect(),
            self.statements.values().cloned().collect(),
            RandomState::new().build_hasher().finish(),
        )
    }
}

/// Runs the ledger of one pool.
pub struct PoolActor {
    key: ObjectKey,
    context: Arc<Context>,
    mailbox: Mailbox<Input>,
    known: Known,
    ledger: Option<Ledger>,
    mending: Mending,
    /// Grants without an answer yet, and to whom.
    grants: HashMap<u64, SandboxRef>,
    wake: Option<Instant>,
    /// Whether BatchSandboxes wait for pods.
    awaited: bool,
    /// Pods that are ready and nobody's.
    available: u32,
}

impl std::fmt::Debug for PoolActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolActor")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl PoolActor {
    /// Starts an actor, whose ledger is made at once.
    pub fn start(key: ObjectKey, known: Known, context: &Arc<Context>) -> Address<Input> {
        let (address, mailbox) = Mailbox::new(&context.metrics);
        let actor = Self {
            key,
            context: Arc::clone(context),
            mailbox,
            known,
            ledger: None,
            mending: Mending::default(),
            grants: HashMap::new(),
            wake: None,
            awaited: false,
            available: 0,
        };
        tokio::spawn(actor.run());
        address
    }

    async fn run(mut self) {
        self.context.metrics.actor("pool", 1);
        self.make();
        self.decide(Input::Wake);
        'run: loop {
            let wake = if self.ledger.is_some() {
                self.wake
            } else {
                self.mending.at
            };
            match self.mailbox.next(wake).await {
                Next::Mail(mut batch) => {
                    for mail in batch.drain(..) {
                        let Some(input) = self.mailbox.open(mail, &self.context.metrics) else {
                            break 'run;
                        };
                        self.take(input);
                    }
                    self.mailbox.reuse(batch);
                }
                Next::Wake if self.ledger.is_some() => {
                    self.wake = None;
                    self.decide(Input::Wake);
                }
                Next::Wake => {}
            }
            if self.context.writer.is_closed() {
                break;
            }
            self.mend();
            self.say_if_idle();
        }
        self.awaited(false);
        self.context.metrics.forget_pool(&self.key);
        self.context.metrics.actor("pool", -1);
    }

    fn take(&mut self, input: Input) {
        self.known.note(&input);
        match &input {
            Input::Sandbox(ToPool::Answer { grant, .. }) => {
                self.grants.remove(grant);
            }
            Input::Sandbox(ToPool::Left { sandbox }) => {
                self.grants.retain(|_, holder| holder != sandbox);
            }
            _ => {}
        }
        self.decide(input);
    }

    fn decide(&mut self, input: Input) {
        let Some(ledger) = &mut self.ledger else {
            return;
        };
        let now = clock::now();
        match guarded("pool", &self.context.metrics, || ledger.handle(input, now)) {
            Some(outputs) => {
                for output in outputs {
                    self.perform(output);
                }
            }
            None => self.broken(),
        }
    }

    fn broken(&mut self) {
        self.ledger = None;
        self.wake = None;
        let wait = self.mending.broken();
        tracing::error!(pool = %self.key, again_in = ?wait, "a bug stopped this pool; it is begun anew");
    }

    fn make(&mut self) {
        let known = &self.known;
        let key = &self.key;
        match guarded("pool", &self.context.metrics, || known.ledger(key)) {
            Some(ledger) => self.ledger = Some(ledger),
            None => self.broken(),
        }
    }

    /// A ledger made anew does not know what the old one had reserved, nor which creations are on their
    /// way: so all of that must be answered first.
    fn mend(&mut self) {
        if self.ledger.is_some() || !self.mending.is_due() {
            return;
        }
        if self.mailbox.underway > 0 || !self.grants.is_empty() {
            self.mending.at = Some(Instant::now() + super::MEND.0);
            return;
        }
        self.make();
        self.decide(Input::Wake);
        if self.ledger.is_some() {
            tracing::info!(pool = %self.key, "the pool runs again");
        }
    }

    fn say_if_idle(&self) {
        if self.known.is_nothing() && self.grants.is_empty() && self.mailbox.underway == 0 {
            self.context.tell_router(Message::PoolIdle {
                key: self.key.clone(),
                handled: self.mailbox.handled,
            });
        }
    }

    fn pod(&self, name: &str) -> ObjectKey {
        ObjectKey::new(self.key.namespace.clone(), name)
    }

    /// Pods go before other writes while somebody waits for them.
    fn awaited(&mut self, awaited: bool) {
        if std::mem::replace(&mut self.awaited, awaited) != awaited {
            self.context.writer.pods_are_awaited(awaited);
        }
    }

    /// For how long pods give way.
    fn patience(&self) -> Duration {
        let spec = self
            .known
            .pool
            .as_ref()
            .and_then(|pool| pool.spec.as_ref().ok());
        let wanted = spec.map_or(0, |spec| spec.capacity_spec.buffer_min);
        if i64::from(self.available) * 2 < i64::from(wanted) {
            LOW
        } else {
            STOCK
        }
    }

    fn perform(&mut self, output: Output) {
        let patience = self.patience();
        let context = Arc::clone(&self.context);
        match output {
            Output::CreatePod { name, pod } => {
                let namespace = self.key.namespace.clone();
                self.mailbox.begin(async move {
                    context.writer.give_precedence(patience).await;
                    let result = answered(context.writer.create_pod(&namespace, &pod)).await;
                    Input::Created {
                        name,
                        result: result.map(Arc::new),
                    }
                });
            }
            Output::Retire {
                name,
                uid,
                version,
                reason,
            } => {
                let pod = self.pod(&name);
                self.mailbox.begin(async move {
                    context.writer.give_precedence(patience).await;
                    let result = answered(context.writer.retire_pod(&pod, version, reason)).await;
                    Input::Retired {
                        name,
                        uid,
                        result: result.map(Arc::new),
                    }
                });
            }
            Output::DeletePod {
                name,
                uid,
                version,
                reason,
            } => {
                let pod = self.pod(&name);
                self.mailbox.begin(async move {
                    context.writer.give_precedence(patience).await;
                    let result = answered(context.writer.delete_pod(&pod, &uid, version)).await;
                    if result.is_ok() {
                        tracing::debug!(%pod, reason, "pod deleted");
                    }
                    Input::Deleted { name, uid, result }
                });
            }
            Output::Restart {
                name,
                uid,
                version,
                containers,
                command,
                record,
            } => {
                let pod = self.pod(&name);
                self.mailbox.begin(async move {
                    let writer = &context.writer;
                    writer.give_precedence(patience).await;
                    let restart = writer.restart_pod(&pod, version, &record, &containers, &command);
                    let result = answered(restart).await;
                    Input::Restarted {
                        name,
                        uid,
                        result: result.map(Arc::new),
                    }
                });
            }
            Output::WriteStatus { version, status } => {
                let key = self.key.clone();
                self.mailbox.begin(async move {
                    context.writer.give_precedence(STATUS).await;
                    let write = context.writer.write_pool_status(&key, version, &status);
                    Input::StatusWritten(answered(write).await)
                });
            }
            Output::ToSandbox { sandbox, message } => {
                if let FromPool::Grant { grant, .. } = &message {
                    self.grants.insert(*grant, sandbox.clone());
                }
                context.tell_router(Message::ToSandbox { sandbox, message });
            }
            Output::Event(event) => {
                let uid = self.known.pool.as_ref().map(|pool| pool.uid.as_str());
                context.events.publish("Pool", &self.key, uid, event);
            }
            Output::Note(note) => {
                if let Note::Census {
                    waiting, available, ..
                } = &note
                {
                    self.awaited(*waiting > 0);
                    self.available = *available;
                }
                context.metrics.pool_note(&self.key, &note);
            }
            Output::WakeAt(then) => self.wake = Some(instant(then, clock::now())),
        }
    }
}
