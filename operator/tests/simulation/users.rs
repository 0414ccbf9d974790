//! What users do: objects made, changed, deleted; nodes and executors that fail; hostile hands.

use opensandbox_api::labels;
use serde_json::{Value, json};

use crate::kubelet::PodStep;
use crate::store::{self, Kind};
use crate::world::{Event, World, time_at};

/// Names of the pools that may be there.
const POOLS: [&str; 2] = ["red", "blue"];
/// Most BatchSandboxes at once.
const MOST_SANDBOXES: usize = 9;

/// What they remember.
#[derive(Debug, Default)]
pub(crate) struct Users {
    /// Pods cannot be created now.
    pub(crate) quota: bool,
    sandboxes: u32,
    images: u32,
}

impl World {
    pub(crate) fn users_begin(&mut self) {
        for pool in POOLS {
            if self.rng.chance(850) {
                self.create_pool(pool);
            }
        }
        let wait = self.rng.between(0, 8_000);
        self.after(wait, Event::User);
    }

    /// One random action, and the next one later.
    pub(crate) fn user(&mut self) {
        if self.calm {
            return;
        }
        match self.rng.below(100) {
            0..=29 => self.create_sandbox(),
            30..=41 => self.delete_sandbox(),
            42..=51 => self.scale_sandbox(),
            52..=59 => self.edit_capacity(),
            60..=64 => self.edit_template(),
            65..=68 => self.edit_recycling(),
            69 | 70 => self.delete_or_create_pool(),
            71..=74 => self.evict(),
            75..=77 => self.delete_pod(),
            78 => self.users.quota = !self.users.quota,
            79..=90 if self.profile.losses => self.lose(),
            91..=96 if self.profile.hostile => self.forge(),
            97 => self.postpone(),
            _ => {}
        }
        let wait = if self.rng.chance(300) {
            self.rng.between(0, 5)
        } else {
            self.rng.between(5, 1_500)
        };
        self.after(wait, Event::User);
    }

    /// From now on nothing goes wrong and nobody does anything.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        self.users.quota = false;
        self.say(|| "calm".to_owned());
        for pool in POOLS {
            match self.store.get(Kind::Pool, pool) {
                None if self.rng.chance(500) => self.create_pool(pool),
                Some(raw)
                    if store::text(raw, "/spec/template/spec/containers/0/image")
                        == Some("broken") =>
                {
                    let mended = json!({"spec": {"template": template("mended")}});
                    self.patch(Kind::Pool, pool, &mended);
                }
                _ => {}
            }
        }
        self.heal();
    }

    fn patch(&mut self, kind: Kind, name: &str, patch: &Value) {
        self.say(|| format!("user patches {kind:?} {name}: {patch}"));
        self.store.patch(kind, name, patch).ok();
    }

    fn any(&mut self, kind: Kind) -> Option<String> {
        let names = self.store.names(kind);
        self.rng.pick(&names).cloned()
    }

    fn capacity(&mut self) -> Value {
        let buffer_min = self.rng.between(0, 2);
        let pool_min = self.rng.between(0, 4);
        json!({
            "bufferMin": buffer_min, "bufferMax": buffer_min + self.rng.between(0, 3),
            "poolMin": pool_min, "poolMax": pool_min + self.rng.between(0, 8),
        })
    }

    fn create_pool(&mut self, name: &str) {
        let mut pool = json!({
            "metadata": {"name": name, "annotations": {labels::RESTART_CONFIG: r#"{"retryInterval":"1s"}"#}},
            "spec": {"template": template("v0"), "capacitySpec": self.capacity()},
        });
        if self.rng.chance(400) {
            // Without the sidecar no process namespace is shared, so containers can be restarted.
            pool["metadata"]["labels"] = json!({labels::INJECTION: "disabled"});
        }
        if self.rng.chance(600) {
            pool["spec"]["recycleStrategy"] = json!({"type": self.recycling()});
        }
        if self.rng.chance(500) {
            let share = if self.rng.chance(500) {
                json!("100%")
            } else {
                json!(1)
            };
            pool["spec"]["scaleStrategy"] = json!({"maxUnavailable": share});
            pool["spec"]["updateStrategy"] = json!({"maxUnavailable": share});
        }
        let stamp = self.stamp();
        self.say(|| format!("user creates Pool {name}: {}", pool["spec"]["capacitySpec"]));
        self.store.create(Kind::Pool, pool, &stamp).ok();
    }

    fn recycling(&mut self) -> &'static str {
        self.rng
            .pick(&["Delete", "Noop", "Restart"])
            .copied()
            .unwrap_or("Delete")
    }

    fn create_sandbox(&mut self) {
        if self.store.names(Kind::Sandbox).len() >= MOST_SANDBOXES {
            return;
        }
        // Names come back, as other objects.
        if self.rng.chance(700) || self.users.sandboxes == 0 {
            self.users.sandboxes += 1;
        }
        let name = format!("sandbox{}", self.users.sandboxes);
        let replicas = match self.rng.below(10) {
            0 => 0,
            1 => self.rng.between(4, 10),
            _ => self.rng.between(1, 3),
        };
        let mut spec = json!({"replicas": replicas});
        match self.rng.below(20) {
            0..=3 => spec["template"] = template("own"),
            4 | 5 => spec["poolRef"] = json!("*"),
            6 => spec["poolRef"] = json!("missing"),
            7..=10 => spec["poolRef"] = json!(POOLS[1]),
            _ => spec["poolRef"] = json!(POOLS[0]),
        }
        if self.rng.chance(500) {
            let millis = self.rng.between(0, 8_000);
            spec["taskTemplate"] = json!({"spec": {"process": process(millis, 0)}});
            let patches: Vec<Value> = (0..self.rng.between(0, 3))
                .map(|_| {
                    let millis = self.rng.between(0, 8_000);
                    let code = self.rng.between(0, 3);
                    json!({"spec": {"process": {"args": process(millis, code)["args"]}}})
                })
                .collect();
            spec["shardTaskPatches"] = json!(patches);
            if self.rng.chance(400) {
                spec["taskResourcePolicyWhenCompleted"] = json!("Release");
            }
            if self.rng.chance(200) {
                spec["ttlSecondsAfterFinished"] = json!(self.rng.between(0, 60));
            }
        }
        if self.rng.chance(80) {
            let expiry = self.now() + self.rng.between(-1_000, 60_000);
            spec["expireTime"] = json!(time_at(expiry).to_string());
        }
        let sandbox = json!({"metadata": {"name": name}, "spec": spec});
        self.say(|| format!("user creates {sandbox}"));
        let stamp = self.stamp();
        self.store.create(Kind::Sandbox, sandbox, &stamp).ok();
    }

    fn delete_sandbox(&mut self) {
        if let Some(name) = self.any(Kind::Sandbox) {
            self.say(|| format!("user deletes BatchSandbox {name}"));
            let stamp = self.stamp();
            self.store
                .delete(Kind::Sandbox, &name, None, None, &stamp)
                .ok();
        }
    }

    fn scale_sandbox(&mut self) {
        if let Some(name) = self.any(Kind::Sandbox) {
            let replicas = self.rng.between(0, 5);
            self.patch(
                Kind::Sandbox,
                &name,
                &json!({"spec": {"replicas": replicas}}),
            );
        }
    }

    fn postpone(&mut self) {
        if let Some(name) = self.any(Kind::Sandbox) {
            let expiry = time_at(self.now() + self.rng.between(1_000, 90_000));
            let patch = json!({"spec": {"expireTime": expiry.to_string()}});
            self.patch(Kind::Sandbox, &name, &patch);
        }
    }

    fn edit_capacity(&mut self) {
        if let Some(name) = self.any(Kind::Pool) {
            let patch = json!({"spec": {"capacitySpec": self.capacity()}});
            self.patch(Kind::Pool, &name, &patch);
        }
    }

    fn edit_template(&mut self) {
        if let Some(name) = self.any(Kind::Pool) {
            self.users.images += 1;
            let broken = self.profile.losses && self.rng.chance(250);
            let image = if broken {
                "broken".to_owned()
            } else {
                format!("v{}", self.users.images)
            };
            self.patch(
                Kind::Pool,
                &name,
                &json!({"spec": {"template": template(&image)}}),
            );
        }
    }

    fn edit_recycling(&mut self) {
        if let Some(name) = self.any(Kind::Pool) {
            let patch = json!({"spec": {"recycleStrategy": {"type": self.recycling()}}});
            self.patch(Kind::Pool, &name, &patch);
        }
    }

    fn delete_or_create_pool(&mut self) {
        let Some(&name) = self.rng.pick(&POOLS) else {
            return;
        };
        if self.store.get(Kind::Pool, name).is_none() {
            self.create_pool(name);
        } else if self.rng.chance(300) {
            self.say(|| format!("user deletes Pool {name}"));
            let stamp = self.stamp();
            self.store.delete(Kind::Pool, name, None, None, &stamp).ok();
        }
    }

    fn evict(&mut self) {
        if let Some(name) = self.any(Kind::Pod) {
            let patch = json!({"metadata": {"labels": {labels::EVICT: ""}}});
            self.patch(Kind::Pod, &name, &patch);
        }
    }

    fn delete_pod(&mut self) {
        if let Some(name) = self.any(Kind::Pod).filter(|_| self.profile.losses) {
            self.say(|| format!("user deletes pod {name}"));
            let stamp = self.stamp();
            self.store.delete(Kind::Pod, &name, None, None, &stamp).ok();
        }
    }

    /// Something happens to a pod or its executor.
    fn lose(&mut self) {
        let Some(name) = self.any(Kind::Pod) else {
            return;
        };
        let Some(raw) = self.store.get(Kind::Pod, &name) else {
            return;
        };
        let uid = store::uid(raw).to_owned();
        let wait = self.rng.between(10, 45_000);
        let (now, later) = match self.rng.below(10) {
            0 | 1 => (PodStep::Fail("Evicted"), None),
            2 => (PodStep::Fail("Error"), None),
            3..=5 => (PodStep::Unready, Some(PodStep::Ready)),
            6 | 7 => (
                PodStep::Restart(vec!["main".to_owned(), "task-executor".to_owned()]),
                None,
            ),
            _ => (PodStep::Unreachable, Some(PodStep::Reachable)),
        };
        self.say(|| format!("pod {name} ({uid}): {now:?}"));
        self.after(0, Event::Pod(uid.clone(), now));
        if let Some(later) = later {
            self.after(wait, Event::Pod(uid, later));
        }
    }

    /// Writes what only the operator may write.
    fn forge(&mut self) {
        let Some(name) = self.any(Kind::Sandbox) else {
            return;
        };
        if self.rng.chance(150) {
            let stamp = self.stamp();
            self.store
                .delete(Kind::Sandbox, &name, None, None, &stamp)
                .ok();
            self.taint(&name, &[]);
            self.patch(
                Kind::Sandbox,
                &name,
                &json!({"metadata": {"finalizers": null}}),
            );
            return;
        }
        let pods = self.store.names(Kind::Pod);
        let some: Vec<String> = (0..self.rng.between(1, 3))
            .filter_map(|_| self.rng.pick(&pods).cloned())
            .collect();
        let value = match self.rng.below(8) {
            0 => Value::Null,
            1 => json!("{"),
            2 => json!("[]"),
            3 => json!(r#"{"pods":["",null,7]}"#),
            4 => json!(r#"{"pods":["a","a"]}"#),
            _ => json!(json!({"pods": some}).to_string()),
        };
        let keys = [
            labels::ALLOC_STATUS,
            labels::ALLOC_RELEASE,
            labels::ALLOC_RELEASED,
            labels::ENDPOINTS,
        ];
        let key = self
            .rng
            .pick(&keys)
            .copied()
            .unwrap_or(labels::ALLOC_STATUS);
        self.taint(&name, &some);
        if key == labels::ALLOC_STATUS
            && let Some(raw) = self.store.get(Kind::Sandbox, &name)
        {
            self.check.note_forgery(raw, value.as_str());
        }
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.patch(Kind::Sandbox, &name, &patch);
    }

    /// What a forged object says, and the pods it names, are nothing that can be checked.
    fn taint(&mut self, name: &str, pods: &[String]) {
        if let Some(raw) = self.store.get(Kind::Sandbox, name) {
            let uid = store::uid(raw).to_owned();
            self.check.taint(&uid, pods);
        }
    }
}

fn template(image: &str) -> Value {
    json!({"spec": {"containers": [{"name": "main", "image": image, "command": ["sleep", "inf"]}]}})
}

fn process(millis: i64, code: i64) -> Value {
    json!({"command": ["run"], "args": [millis.to_string(), code.to_string()]})
}
