//! Who gets what: the one task that knows all actors.
//!
//! In: [`Message`]s from watches, actors and executors, in one queue, so that what one sends to another
//! arrives in order. Out: mail. While this replica does not lead it only keeps the [`World`]. Once it
//! leads, and every list was made anew since, each pool gets an actor with all that sandboxes say about
//! it, then each BatchSandbox.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::actor::{Address, Context, Known, Letter, PoolActor, SandboxActor, Sealed, Start};
use super::world::{Change, Delivery, World};
use crate::protocol::{FromPool, SandboxRef, ToPool};
use crate::view::{ObjectKey, PodView, PoolView, SandboxView};
use crate::{pool, sandbox};

/// Messages taken at once.
const BATCH: usize = 256;

/// What the router is told.
#[derive(Debug)]
pub enum Message {
    /// By a watch.
    Change(Change),
    /// By a watch: its list is complete.
    Listed {
        /// Which watch.
        watch: String,
        /// How often all had been restarted when it began.
        round: u64,
    },
    /// This replica leads.
    Lead(Lead),
    /// From a sandbox to a pool.
    ToPool {
        /// Which.
        pool: ObjectKey,
        /// What.
        message: ToPool,
    },
    /// From a pool to a sandbox.
    ToSandbox {
        /// Which.
        sandbox: SandboxRef,
        /// What.
        message: FromPool,
    },
    /// From an executor.
    Report {
        /// UID of the BatchSandbox.
        sandbox_uid: String,
        /// What it says.
        report: Sealed,
    },
    /// A sandbox asks which pool to take.
    Assign {
        /// Which.
        sandbox: SandboxRef,
    },
    /// A pool has nothing left: no object, no pods, no sandboxes.
    PoolIdle {
        /// Which.
        key: ObjectKey,
        /// Messages it had handled by then.
        handled: u64,
    },
    /// A sandbox is gone and its actor has ended.
    SandboxDone {
        /// UID.
        uid: String,
    },
}

/// How this replica came to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Lists of this round or later are newer than anything the leader before wrote while it led.
    pub round: u64,
    /// To be written on objects that wait, see [`crate::sandbox::Setting::fence`].
    pub fence: Option<String>,
    /// When.
    pub since: Timestamp,
}

/// Chooses a pool for a sandbox with `poolRef: "*"`.
pub type Choose = dyn Fn(&SandboxView, &[Arc<PoolView>], &World) -> Result<String, String> + Send;

/// See the module.
pub struct Router {
    world: World,
    watches: BTreeSet<String>,
    listed: HashMap<String, u64>,
    lead: Option<Lead>,
    leading: Option<Leading>,
    choose: Box<Choose>,
    context: Arc<Context>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

/// The actors.
struct Leading {
    fence: Option<String>,
    since: Timestamp,
    pools: HashMap<ObjectKey, Address<pool::Input>>,
    /// By UID.
    sandboxes: HashMap<String, Sandbox>,
    /// Pools of which it is not known who holds what.
    still: HashSet<ObjectKey>,
    /// UIDs of objects whose actors have ended and that the watch has not yet told to be gone.
    done: HashSet<String>,
}

struct Sandbox {
    key: ObjectKey,
    address: Address<Letter>,
}

impl Router {
    /// A router of a replica that does not lead. `watches` are the names of all watches.
    pub fn new(
        world: World,
        watches: impl IntoIterator<Item = String>,
        choose: Box<Choose>,
        context: Arc<Context>,
    ) -> Self {
        Self {
            world,
            watches: watches.into_iter().collect(),
            listed: HashMap::new(),
            lead: None,
            leading: None,
            choose,
            context,
        }
    }

    /// Takes messages until there is nobody left to send any.
    pub async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        let mut batch = Vec::with_capacity(BATCH);
        while messages.recv_many(&mut batch, BATCH).await > 0 {
            for message in batch.drain(..) {
                self.take(message);
            }
        }
    }

    /// Takes one message.
    pub fn take(&mut self, message: Message) {
        match message {
            Message::Change(change) => {
                for delivery in self.world.apply(change) {
                    self.deliver(delivery);
                }
            }
            Message::Listed { watch, round } => {
                self.listed.insert(watch, round);
                self.begin_if_complete();
            }
            Message::Lead(lead) => {
                self.lead = Some(lead);
                self.begin_if_complete();
            }
            Message::ToPool { pool, message } => {
                self.context.metrics.mailbox.dec();
                self.tell_pool(pool, pool::Input::Sandbox(message));
            }
            Message::ToSandbox { sandbox, message } => {
                self.context.metrics.mailbox.dec();
                self.tell_sandbox(&sandbox.uid, sandbox::Input::Pool(message));
            }
            Message::Report {
                sandbox_uid,
                report,
            } => self.tell_sandbox(&sandbox_uid, Letter::Report(report)),
            Message::Assign { sandbox } => {
                self.context.metrics.mailbox.dec();
                self.assign(&sandbox);
            }
            Message::PoolIdle { key, handled } => {
                self.context.metrics.mailbox.dec();
                self.forget_pool(&key, handled);
            }
            Message::SandboxDone { uid } => {
                self.context.metrics.mailbox.dec();
                self.forget_sandbox(uid);
            }
        }
    }

    fn begin_if_complete(&mut self) {
        let Some(lead) = &self.lead else {
            return;
        };
        let complete = |watch| {
            self.listed
                .get(watch)
                .is_some_and(|listed| *listed >= lead.round)
        };
        if self.leading.is_some() || !self.watches.iter().all(complete) {
            return;
        }
        let Lead {
            round: _,
            fence,
            since,
        } = lead.clone();
        self.leading = Some(Leading {
            fence,
            since,
            pools: HashMap::new(),
            sandboxes: HashMap::new(),
            still: HashSet::new(),
            done: HashSet::new(),
        });
        let starts = self.world.pools_at_start();
        let pools = starts.len();
        for (key, start) in starts {
            if start.unknown {
                self.context.metrics.panicked("pool");
                self.stand_still(key);
                continue;
            }
            let statements = start.statements.into_iter();
            let known = Known {
                pool: self.world.pool(&key),
                injection: self.world.injection(&key.namespace),
                pods: by_name(start.pods),
                statements: statements
                    .map(|statement| (statement.sandbox.clone(), statement))
                    .collect(),
            };
            self.start_pool(key, known);
        }
        let mut pods = self.world.template_pods();
        let sandboxes: Vec<_> = self.world.sandboxes().cloned().collect();
        let count = sandboxes.len();
        for view in sandboxes {
            let pods = pods.remove(&view.uid).unwrap_or_default();
            self.start_sandbox(view, pods, true);
        }
        tracing::info!(pools, batch_sandboxes = count, "looking after all objects");
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        match delivery {
            Delivery::Pool(key, input) => self.tell_pool(key, input),
            Delivery::Sandbox(uid, input) => self.tell_sandbox(&uid, input),
            Delivery::SandboxGone(uid) => {
                leading.done.remove(&uid);
                self.tell_sandbox(&uid, sandbox::Input::Absent);
            }
            Delivery::NewSandbox(view) => {
                if let Some(sandbox) = leading.sandboxes.get_mut(&view.uid) {
                    sandbox.address.send(sandbox::Input::Object(view).into());
                } else if !leading.done.contains(&view.uid) {
                    let fenced = view.created < leading.since;
                    // What has no template has no pods of its own.
                    let own = view.spec.as_ref().is_ok_and(|spec| spec.template.is_some());
                    let pods = if own {
                        self.world.pods_of_sandbox(&view)
                    } else {
                        Vec::new()
                    };
                    self.start_sandbox(view, pods, fenced);
                }
            }
            Delivery::Injection(namespace, facts) => {
                for (key, address) in &mut leading.pools {
                    if key.namespace == namespace {
                        address.send(pool::Input::Injection(Arc::clone(&facts)));
                    }
                }
                for sandbox in leading.sandboxes.values_mut() {
                    if sandbox.key.namespace == namespace {
                        let facts = Arc::clone(&facts);
                        sandbox
                            .address
                            .send(sandbox::Input::Injection(facts).into());
                    }
                }
            }
        }
    }

    /// To a pool, which is made if there is none: a sandbox may name one that does not exist.
    fn tell_pool(&mut self, key: ObjectKey, input: pool::Input) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        if let Some(address) = leading.pools.get_mut(&key) {
            address.send(input);
            return;
        }
        let begins = matches!(
            &input,
            pool::Input::Pool(_) | pool::Input::Pod(_) | pool::Input::Sandbox(ToPool::Statement(_))
        );
        if !begins || leading.still.contains(&key) {
            return;
        }
        let known = Known {
            pool: self.world.pool(&key),
            injection: self.world.injection(&key.namespace),
            pods: by_name(self.world.pods_of_pool(&key)),
            statements: std::collections::BTreeMap::new(),
        };
        self.start_pool(key.clone(), known);
        self.tell_pool(key, input);
    }

    /// Nothing is done about this pool as long as this process lives.
    fn stand_still(&mut self, key: ObjectKey) {
        if let Some(leading) = &mut self.leading {
            leading.still.insert(key);
        }
    }

    fn start_pool(&mut self, key: ObjectKey, known: Known) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let address = PoolActor::start(key.clone(), known, &self.context);
        leading.pools.insert(key, address);
    }

    /// `fenced`: the object is older than this replica's lead.
    fn start_sandbox(&mut self, view: Arc<SandboxView>, pods: Vec<Arc<PodView>>, fenced: bool) {
        let injection = self.world.injection(&view.key.namespace);
        let Some(leading) = &mut self.leading else {
            return;
        };
        let uid = view.uid.clone();
        let key = view.key.clone();
        let start = Start {
            view,
            pods,
            injection,
            fence: leading.fence.clone().filter(|_| fenced),
        };
        let address = SandboxActor::start(start, &self.context);
        leading.sandboxes.insert(uid, Sandbox { key, address });
    }

    /// To a sandbox; what is meant for one that is gone has come too late.
    fn tell_sandbox(&mut self, uid: &str, letter: impl Into<Letter>) {
        let leading = self.leading.as_mut();
        if let Some(sandbox) = leading.and_then(|leading| leading.sandboxes.get_mut(uid)) {
            sandbox.address.send(letter.into());
        }
    }

    fn assign(&mut self, sandbox: &SandboxRef) {
        let Some(view) = self
            .world
            .sandbox(&sandbox.key)
            .filter(|view| view.uid == sandbox.uid)
        else {
            return;
        };
        let pools = self.world.pools_of(&sandbox.key.namespace);
        let chosen = (self.choose)(view, &pools, &self.world);
        self.tell_sandbox(&sandbox.uid, sandbox::Input::Assigned(chosen));
    }

    fn forget_pool(&mut self, key: &ObjectKey, handled: u64) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        // Something may have been sent meanwhile.
        let idle = |address: &Address<_>| address.sent() == handled;
        if leading.pools.get(key).is_some_and(idle)
            && let Some(address) = leading.pools.remove(key)
        {
            address.end();
        }
    }

    fn forget_sandbox(&mut self, uid: String) {
        let Some(leading) = &mut self.leading else {
            return;
        };
        let Some(sandbox) = leading.sandboxes.remove(&uid) else {
            return;
        };
        let still_told = self
            .world
            .sandbox(&sandbox.key)
            .is_some_and(|view| view.uid == uid);
        if still_told {
            leading.done.insert(uid);
        }
    }
}

fn by_name(pods: Vec<Arc<PodView>>) -> HashMap<String, Arc<PodView>> {
    pods.into_iter()
        .map(|pod| (pod.key.name.clone(), pod))
        .collect()
}

#[cfg(test)]
mod tests;
