//! Sandboxes: they take what they are offered, or not, and give back what they are told to.

use super::*;

/// A sandbox that takes what it is offered, or not, and gives back what it is told to.
pub(super) struct Sandbox {
    pub(super) queued: Timestamp,
    pub(super) replicas: u32,
    pub(super) holds: Vec<String>,
    pub(super) returns: Vec<Return>,
    pub(super) lost: BTreeSet<String>,
    pub(super) deleting: bool,
    /// Whether it takes the next offer.
    pub(super) takes: bool,
    pub(super) inbox: VecDeque<FromPool>,
    pub(super) outbox: VecDeque<ToPool>,
}

impl Sandbox {
    pub(super) fn statement(&self, uid: &str) -> Statement {
        let live = self
            .holds
            .iter()
            .filter(|pod| !self.lost.contains(*pod))
            .count();
        let live = u32::try_from(live).unwrap();
        let wants = if self.deleting {
            0
        } else {
            self.replicas.saturating_sub(live)
        };
        Statement {
            sandbox: sandbox(uid),
            standing: Standing {
                made_out: false,
                created: self.queued,
            },
            queued: self.queued,
            holds: self.holds.clone(),
            returns: self.returns.clone(),
            wants,
            replicas: self.replicas,
        }
    }
}

impl World {
    pub(super) fn with_sandbox(&mut self, number: usize, act: impl FnOnce(&mut Self, &str)) {
        let count = self.sandboxes.len();
        if count > 0 {
            let uid = self.sandboxes.keys().nth(number % count).unwrap().clone();
            act(self, &uid);
        }
    }

    /// Sends the statement of a sandbox.
    pub(super) fn state(&mut self, uid: &str) {
        let sandbox = self.sandboxes.get_mut(uid).unwrap();
        let statement = sandbox.statement(uid);
        sandbox.outbox.push_back(ToPool::Statement(statement));
    }

    pub(super) fn new_sandbox(&mut self, replicas: u32) {
        if self.sandboxes.len() > 8 {
            return;
        }
        let uid = format!("s{}", self.version().0);
        let sandbox = Sandbox {
            queued: self.now,
            replicas,
            holds: Vec::new(),
            returns: Vec::new(),
            lost: BTreeSet::new(),
            deleting: false,
            takes: true,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
        };
        self.sandboxes.insert(uid.clone(), sandbox);
        self.state(&uid);
    }

    pub(super) fn give_back(&mut self, uid: &str, pod: usize, clean: bool) {
        let sandbox = self.sandboxes.get_mut(uid).unwrap();
        if sandbox.holds.is_empty() {
            return;
        }
        let name = sandbox.holds.remove(pod % sandbox.holds.len());
        sandbox.replicas = sandbox.replicas.saturating_sub(1);
        sandbox.lost.remove(&name);
        let clean = clean && self.pods.get(&name).is_none_or(|pod| !pod.has_ended());
        if clean {
            // Its tasks are stopped; the test recycles by Noop or Delete.
            self.dirty.remove(&name);
        }
        sandbox.returns.push(Return { pod: name, clean });
        self.state(uid);
    }

    /// A sandbox reads one message.
    pub(super) fn hear(&mut self, uid: &str) {
        let sandbox = self.sandboxes.get_mut(uid).unwrap();
        match sandbox.inbox.pop_front() {
            None | Some(FromPool::Pod(_) | FromPool::Waiting(_)) => {}
            Some(FromPool::Lost { pod, .. }) => {
                if sandbox.holds.contains(&pod) {
                    sandbox.lost.insert(pod);
                    self.state(uid);
                }
            }
            Some(FromPool::Recycled { pod }) => {
                sandbox.returns.retain(|returned| returned.pod != pod);
                if sandbox.deleting && sandbox.holds.is_empty() && sandbox.returns.is_empty() {
                    self.leave(uid);
                } else {
                    self.state(uid);
                }
            }
            Some(FromPool::Grant { grant, pods }) => {
                let live = sandbox.statement(uid).wants as usize;
                let takes = std::mem::replace(&mut sandbox.takes, true) && pods.len() <= live;
                if takes {
                    for pod in &pods {
                        let name = pod.key.name.clone();
                        // A lost pod is replaced in its place.
                        match sandbox
                            .holds
                            .iter()
                            .position(|held| sandbox.lost.contains(held))
                        {
                            Some(place) => {
                                let gone =
                                    std::mem::replace(&mut sandbox.holds[place], name.clone());
                                sandbox.lost.remove(&gone);
                            }
                            None => sandbox.holds.push(name.clone()),
                        }
                        if self.pods.get(&name).is_some_and(|now| now.uid == pod.uid) {
                            self.dirty.insert(name, uid.to_owned());
                        }
                    }
                    self.state(uid);
                }
                let answer = ToPool::Answer {
                    sandbox: super::sandbox(uid),
                    grant,
                    taken: takes,
                };
                self.sandboxes
                    .get_mut(uid)
                    .unwrap()
                    .outbox
                    .push_back(answer);
            }
        }
    }

    pub(super) fn leave(&mut self, uid: &str) {
        // What it said before arrives before.
        let mut sandbox = self.sandboxes.remove(uid).unwrap();
        while let Some(message) = sandbox.outbox.pop_front() {
            self.handle(Input::Sandbox(message));
        }
        self.handle(Input::Sandbox(ToPool::Left {
            sandbox: super::sandbox(uid),
        }));
    }
}
