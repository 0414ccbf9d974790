//! What must be true after each step, and when nothing is left to do.

use super::server::owner_uid;
use super::*;

impl World {
    /// Names of pods that sandboxes hold, as far as they are alive.
    pub(super) fn held(&self) -> BTreeMap<&str, &str> {
        let mut held = BTreeMap::new();
        for (uid, sandbox) in &self.sandboxes {
            for pod in &sandbox.holds {
                if sandbox.lost.contains(pod) {
                    continue;
                }
                let other = held.insert(pod.as_str(), uid.as_str());
                assert_eq!(other, None, "pod {pod} is held twice");
            }
        }
        held
    }

    pub(super) fn check(&self, output: &Output) {
        match output {
            Output::CreatePod { name, .. } => {
                let fresh = !self.created.contains(name);
                assert!(fresh || self.unclear.contains(name), "{name} is made twice");
                let uid = self
                    .ledger
                    .facts
                    .as_ref()
                    .map(|facts| facts.view.uid.as_str());
                let asked = self.requests.iter().filter_map(|request| match request {
                    Output::CreatePod { name, pod } if owner_uid(pod) == uid => Some(name),
                    _ => None,
                });
                let present = self.pods.values().filter(|pod| self.is_ours(pod));
                let present = present.map(|pod| &pod.key.name);
                let all: BTreeSet<&String> = asked.chain(present).chain([name]).collect();
                let most = usize::try_from(self.capacity().unwrap().pool_max).unwrap();
                let known: Vec<&String> = self.ledger.pods.names().collect();
                assert!(
                    all.len() <= most,
                    "{all:?} of at most {most}, known {known:?}"
                );
            }
            Output::Retire { name, .. } | Output::DeletePod { name, .. } => {
                let alive = self
                    .pods
                    .get(name)
                    .is_some_and(|pod| !pod.deleting && !pod.has_ended());
                // Another pod of a name that a sandbox still names is not the one that it has.
                let tenant = self.dirty.get(name).map(String::as_str);
                let holder = self.held().get(name.as_str()).copied();
                if let Some(uid) = holder.filter(|uid| alive && tenant == Some(*uid)) {
                    // Only if the sandbox said otherwise: it gave the pod back, or left.
                    let member = self.ledger.members.get(uid);
                    assert!(
                        member.is_none_or(|member| !member.holds(name)),
                        "pod {name} of {uid} is removed"
                    );
                }
            }
            Output::ToSandbox {
                sandbox,
                message: FromPool::Grant { pods, .. },
            } => {
                assert!(!pods.is_empty());
                for pod in pods {
                    let name = &pod.key.name;
                    assert!(pod.is_usable() && pod.ip.is_some() && !pod.evict, "{name}");
                    assert_eq!(self.held().get(name.as_str()), None, "{name} is held");
                    if let Some(tenant) = self.dirty.get(name) {
                        panic!("{name} of {tenant} is given to {} dirty", sandbox.uid);
                    }
                }
            }
            Output::WakeAt(at) => assert!(*at > self.now, "a wake-up in the past"),
            _ => {}
        }
    }

    pub(super) fn is_ours(&self, pod: &PodView) -> bool {
        let uid = self.ledger.facts.as_ref().map(|facts| &facts.view.uid);
        pod.owner.as_ref().map(|owner| &owner.uid) == uid
    }

    /// Lets everything work, until nothing is left to do; panics if that does not end.
    pub(in crate::pool::tests) fn calm(&mut self) {
        if self.pool.is_none() {
            self.step(Turn::Edit(Edit::Back));
        }
        let mut quiet = 0;
        for _ in 0..20_000 {
            let before = self.version;
            let busy = self.flow();
            for number in 0..self.pods.len() {
                let pod = self.pods.values().nth(number).unwrap();
                if pod.deleting {
                    self.step(Turn::Pod(number, Life::Ends));
                    break;
                }
                if !pod.ready && !pod.has_ended() {
                    self.step(Turn::Pod(number, Life::Ready));
                }
            }
            if busy || self.version != before {
                quiet = 0;
            } else {
                quiet += 1;
                match self.wake {
                    Some(wake) => {
                        let wait = wake.duration_since(self.now).as_millis().max(0);
                        self.step(Turn::Pass(i64::try_from(wait).unwrap()));
                    }
                    None if quiet > 3 => return,
                    None => {}
                }
            }
        }
        panic!("it does not come to rest: {:?}", self.ledger);
    }

    /// Carries out everything that is on its way; returns whether there was something.
    pub(super) fn flow(&mut self) -> bool {
        let mut busy = false;
        while !self.requests.is_empty() {
            self.step(Turn::Request(0, Fate::Works));
            busy = true;
        }
        while !self.answers.is_empty() {
            self.step(Turn::Answer(0));
            busy = true;
        }
        while !self.pod_events.is_empty() {
            self.step(Turn::Watch(false));
            busy = true;
        }
        while !self.pool_events.is_empty() {
            self.step(Turn::WatchPool);
            busy = true;
        }
        for number in 0..self.sandboxes.len() {
            let waits =
                |world: &Self| {
                    world.sandboxes.values().nth(number).is_some_and(|sandbox| {
                        !(sandbox.inbox.is_empty() && sandbox.outbox.is_empty())
                    })
                };
            while waits(self) {
                self.step(Turn::Hear(number));
                self.step(Turn::Say(number, false));
                busy = true;
            }
        }
        busy
    }

    /// What must be true when nothing is left to do.
    pub(in crate::pool::tests) fn check_rest(&mut self) {
        let held = self.held().len();
        let counts = self.ledger.pods.counts();
        let names: BTreeSet<&String> = self.pods.keys().collect();
        let known: BTreeSet<&String> = self.ledger.pods.names().collect();
        assert_eq!(names, known);
        assert_eq!(usize::try_from(counts.allocated).unwrap(), held);
        assert_eq!(
            counts.leaving + counts.unready + counts.reserved,
            0,
            "{counts:?}"
        );
        assert_eq!(counts.outdated_idle, 0, "{counts:?}");
        assert_eq!(self.ledger.births.pending(), 0);
        let capacity = self.capacity().unwrap();
        let census = opensandbox_api::capacity::Census {
            allocated: counts.allocated,
            idle: counts.usable,
            terminating: 0,
            waiting: self.ledger.members.lacking(),
        };
        assert_eq!(
            opensandbox_api::capacity::change(capacity, census),
            opensandbox_api::capacity::Change::None
        );
        let most = u32::try_from(capacity.pool_max).unwrap();
        if self.ledger.members.lacking() > 0 {
            assert_eq!(counts.usable, 0);
            assert!(
                counts.total() >= most,
                "somebody waits although there is room"
            );
        }
        assert!(counts.total() <= most.max(counts.allocated));
        let status = &self.pool.as_ref().unwrap().status;
        let numbers = (
            status.total,
            status.allocated,
            status.available,
            status.updated,
        );
        let number = |pods: u32| i32::try_from(pods).unwrap();
        assert_eq!(
            numbers,
            (
                number(counts.total()),
                number(counts.allocated),
                number(counts.usable),
                Some(number(counts.updated))
            )
        );
        for (uid, sandbox) in &self.sandboxes {
            assert!(
                sandbox.returns.is_empty(),
                "{uid} waits for a recycling: {:?}",
                sandbox.returns
            );
            assert!(
                sandbox.statement(uid).wants == 0 || self.ledger.members.lacking() > 0,
                "{uid}"
            );
        }
        // And then nothing happens any more.
        for _ in 0..10 {
            self.now += SignedDuration::from_mins(10);
            let outputs = self.ledger.handle(Input::Wake, self.now);
            assert_eq!(outputs, []);
        }
    }
}
