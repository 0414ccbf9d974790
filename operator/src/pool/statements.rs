//! What sandboxes say, and what it makes of their pods.
//!
//! A pod becomes a sandbox's in two ways only: at the start, by what is written on the objects, and later
//! by an offer that was taken. Whatever else a statement names is not believed: the sandbox is told that
//! such a pod is lost, and nothing else changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::Ledger;
use super::pods::{Owner, State};
use crate::protocol::{FromPool, SandboxRef, Statement};

impl Ledger {
    /// Gives the pods of the start to those whose objects name them. Where two do, an object that can be
    /// read comes before one that cannot, and then the older.
    pub(super) fn claim(&mut self, mut statements: Vec<Statement>) {
        statements.sort_by(|one, other| {
            (one.standing, &one.sandbox.uid).cmp(&(other.standing, &other.sandbox.uid))
        });
        for statement in statements {
            let uid = statement.sandbox.uid.clone();
            self.members.state(statement, true);
            self.claim_named(&uid);
        }
    }

    /// Gives a sandbox that has not spoken the idle pods that its object names.
    fn claim_named(&mut self, uid: &str) {
        let Some(member) = self.members.get_mut(uid) else {
            return;
        };
        let statement = &member.statement;
        let returned = statement.returns.iter().map(|returned| &returned.pod);
        for name in statement.holds.iter().chain(returned) {
            let free =
                |pod: &super::pods::Pod| pod.state == State::Idle && pod.owner != Owner::Other;
            if self.pods.get(name).is_some_and(free) {
                self.pods.set(name, State::Held(uid.to_owned()));
                member.pods.insert(name.clone());
            }
        }
    }

    /// Does what follows from the objects of the start.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.report_problems_at_start();
        let pool_max = self.pool_max();
        for uid in self.members.uids() {
            self.members.requeue(&uid, pool_max, now, |_| {});
            self.show_pods(&uid);
            self.settle_holds(&uid, now);
        }
        let names: Vec<String> = self.pods.names().cloned().collect();
        for name in names {
            self.look_at(&name, now);
        }
    }

    /// Takes in a statement.
    pub(super) fn hear(&mut self, statement: Statement, now: Timestamp) {
        let uid = statement.sandbox.uid.clone();
        let unheard = self.members.get(&uid).is_some_and(|member| member.unheard);
        let provisional = unheard
            && self
                .members
                .get(&uid)
                .is_some_and(|member| member.statement.wants > 0);
        self.members.state(statement, false);
        if provisional {
            // An earlier leader's last word may be the write that gave it these pods.
            self.claim_named(&uid);
        }
        let granted = self.members.get(&uid).is_some_and(|member| {
            let grant = member.grant.as_ref();
            grant.is_some_and(|grant| grant.pods.iter().any(|pod| member.names(pod)))
        });
        if granted {
            self.take(&uid, now);
        }
        let pool_max = self.pool_max();
        self.members.requeue(&uid, pool_max, now, |_| {});
        if unheard {
            self.show_pods(&uid);
        }
        self.settle_holds(&uid, now);
    }

    /// Tells a sandbox how its pods are.
    fn show_pods(&mut self, uid: &str) {
        let Some(member) = self.members.get(uid) else {
            return;
        };
        let sandbox = member.sandbox().clone();
        let views: Vec<_> = member
            .pods
            .iter()
            .filter_map(|name| self.pods.get(name))
            .filter(|pod| pod.sandbox() == Some(uid))
            .map(|pod| Arc::clone(&pod.view))
            .collect();
        for view in views {
            self.tell(sandbox.clone(), FromPool::Pod(view));
        }
    }

    /// Brings the pods of a sandbox in line with what it says of them.
    pub(super) fn settle_holds(&mut self, uid: &str, now: Timestamp) {
        let Some(member) = self.members.get(uid) else {
            return;
        };
        let statement = member.statement.clone();
        let unnamed: BTreeSet<String> = member
            .pods
            .iter()
            .filter(|name| !member.names(name))
            .cloned()
            .collect();

        for name in &statement.holds {
            match self.pods.get(name) {
                Some(pod) if pod.sandbox() == Some(uid) => match pod.state {
                    State::Held(_) => self.look_at(name, now),
                    State::Reserved(_) => {}
                    _ => self.lose(uid, name, "it was given back before".to_owned()),
                },
                Some(pod) if pod.owner == Owner::Other => {
                    let pool = &self.key.name;
                    let cause = format!("pod {name} does not belong to Pool {pool}");
                    self.lose(uid, name, cause);
                }
                Some(pod) if pod.view.deleting => {
                    let cause = format!("pod {name} is being deleted");
                    self.lose(uid, name, cause);
                }
                Some(_) => {
                    let cause = format!("pod {name} was not given to this sandbox");
                    self.lose(uid, name, cause);
                }
                None => self.lose(uid, name, format!("pod {name} does not exist")),
            }
        }
        for returned in &statement.returns {
            let own = self
                .pods
                .get(&returned.pod)
                .filter(|pod| pod.sandbox() == Some(uid));
            match own.map(|pod| &pod.state) {
                Some(State::Held(_)) => {
                    self.recycle(&returned.pod, Some(&statement.sandbox), returned.clean, now);
                }
                // Its recycling is under way.
                Some(_) => {}
                // Gone, or never its: as far as this sandbox is concerned there is nothing to recycle.
                None => self.tell_recycled(uid, &returned.pod),
            }
        }
        for name in unnamed {
            let owned = self
                .pods
                .get(&name)
                .filter(|pod| pod.sandbox() == Some(uid))
                .map(|pod| pod.state.clone());
            match owned {
                Some(State::Held(_)) => self.recycle(&name, None, false, now),
                Some(State::Recycled(_)) => {
                    self.forget(uid, &name);
                    self.free(&name);
                }
                // Goes on, and ends with nobody to be told.
                Some(State::Reserved(_) | State::Restarting(_)) => {}
                _ => self.forget(uid, &name),
            }
        }
    }

    /// Takes a sandbox out: what it had is given back, without a proof.
    pub(super) fn leave(&mut self, sandbox: &SandboxRef, now: Timestamp) {
        let Some(member) = self.members.remove(&sandbox.uid) else {
            return;
        };
        for name in &member.pods {
            let state = self
                .pods
                .get(name)
                .filter(|pod| pod.sandbox() == Some(sandbox.uid.as_str()))
                .map(|pod| pod.state.clone());
            match state {
                Some(State::Held(_) | State::Reserved(_)) => {
                    self.recycle(name, None, false, now);
                }
                Some(State::Recycled(_)) => self.free(name),
                _ => {}
            }
        }
    }

    /// Tells a sandbox, once, that it has lost a pod that it names.
    pub(super) fn lose(&mut self, uid: &str, name: &str, cause: String) {
        let Some(member) = self.members.get_mut(uid) else {
            return;
        };
        if !member.holds(name) || !member.lost.insert(name.to_owned()) {
            return;
        }
        let sandbox = member.sandbox().clone();
        let pod = name.to_owned();
        self.tell(sandbox, FromPool::Lost { pod, cause });
    }

    /// Tells a sandbox, once, that the recycling of a pod that it gave back is over.
    pub(super) fn tell_recycled(&mut self, uid: &str, name: &str) {
        let Some(member) = self.members.get_mut(uid) else {
            return;
        };
        if member.returned(name).is_none() || !member.recycled.insert(name.to_owned()) {
            return;
        }
        let sandbox = member.sandbox().clone();
        let pod = name.to_owned();
        self.tell(sandbox, FromPool::Recycled { pod });
    }

    /// A pod is not the sandbox's any more.
    pub(super) fn forget(&mut self, uid: &str, name: &str) {
        if let Some(member) = self.members.get_mut(uid) {
            member.pods.remove(name);
        }
    }
}
