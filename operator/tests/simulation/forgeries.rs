//! What users write that only the operator may, and what cannot be asked of it then.

use std::collections::BTreeSet;

use opensandbox_operator::protocol::{Standing, Statement};

use crate::check::Checker;

impl Checker {
    /// What this object says from now on, and the pods that it names, are nothing that can be checked.
    pub(crate) fn taint(&mut self, uid: &str, pods: &[String]) {
        self.tainted.insert(uid.to_owned());
        self.tainted_pods.extend(pods.iter().cloned());
        if let Some(claim) = self.claims.get(uid) {
            self.tainted_pods.extend(claim.alloc.iter().cloned());
        }
    }

    pub(crate) fn is_tainted(&self, uid: &str) -> bool {
        self.tainted.contains(uid)
    }

    /// A ledger begins with these statements. Of two objects that name one pod the older keeps it, even
    /// where it names it only because a user has written so: `docs/security.md` says that.
    pub(crate) fn note_start(&mut self, statements: &[Statement]) {
        let place = |statement: &Statement| {
            let Standing { made_out, created } = statement.standing;
            (!made_out).then(|| (created, statement.sandbox.uid.clone()))
        };
        let forged = statements
            .iter()
            .filter(|one| self.is_tainted(&one.sandbox.uid));
        let mut taken = BTreeSet::new();
        for (forged, before) in forged.filter_map(|one| Some((one, place(one)?))) {
            let returned = forged.returns.iter().map(|returned| &returned.pod);
            for pod in forged.holds.iter().chain(returned) {
                let others = statements.iter().filter(|one| one.holds.contains(pod));
                let younger = others.filter(|one| place(one).is_none_or(|place| before < place));
                taken.extend(younger.map(|one| (one.sandbox.uid.clone(), pod.clone())));
            }
        }
        self.taken.extend(taken);
    }

    /// Whether a start may have taken this pod from the sandbox.
    pub(crate) fn may_be_taken(&self, uid: &str, pod: &str) -> bool {
        self.taken.contains(&(uid.to_owned(), pod.to_owned()))
    }
}
