//! The API server, the kubelet and the users who edit the Pool.

use super::*;

/// UID of the Pool that a pod is made for.
pub(super) fn owner_uid(pod: &Value) -> Option<&str> {
    pod["metadata"]["ownerReferences"][0]["uid"].as_str()
}

fn unclear() -> WriteError {
    WriteError::Unclear {
        message: "lost".to_owned(),
    }
}

fn refused() -> WriteError {
    WriteError::Refused {
        reason: "Forbidden".to_owned(),
        message: "no".to_owned(),
    }
}

impl World {
    pub(super) fn publish(&mut self, name: &str) {
        let version = self.version();
        let pod = self.pods.get_mut(name).unwrap();
        pod.version = version;
        let view = Arc::new(pod.clone());
        self.pod_events.push_back(Input::Pod(view));
    }

    pub(super) fn end(&mut self, name: &str) {
        if let Some(pod) = self.pods.remove(name) {
            self.dirty.remove(name);
            self.pod_events.push_back(Input::PodGone {
                name: name.to_owned(),
                uid: pod.uid,
            });
        }
    }

    pub(super) fn carry_out(&mut self, number: usize, fate: Fate) {
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.remove(number % self.requests.len()).unwrap();
        match request {
            Output::CreatePod { name, pod } => {
                let result = match fate {
                    Fate::Refused => Err(refused()),
                    Fate::Unclear => Err(unclear()),
                    Fate::Works | Fate::Lost if self.pods.contains_key(&name) => {
                        Err(WriteError::AlreadyExists)
                    }
                    Fate::Works => Ok(self.make(&name, &pod)),
                    Fate::Lost => {
                        self.make(&name, &pod);
                        Err(unclear())
                    }
                };
                if matches!(result, Err(WriteError::Unclear { .. })) {
                    self.unclear.insert(name.clone());
                }
                self.answers.push(Input::Created { name, result });
            }
            Output::Retire {
                name, uid, version, ..
            } => {
                let result = match (self.precondition(&name, &uid, Some(version)), fate) {
                    (_, Fate::Refused) => Err(refused()),
                    (_, Fate::Unclear) => Err(unclear()),
                    (Err(error), _) => Err(error),
                    (Ok(()), _) => {
                        self.pods.get_mut(&name).unwrap().retiring = true;
                        self.publish(&name);
                        Ok(Arc::new(self.pods[&name].clone()))
                    }
                };
                let result = result.and_then(|view| match fate {
                    Fate::Lost => Err(unclear()),
                    _ => Ok(view),
                });
                self.answers.push(Input::Retired { name, uid, result });
            }
            Output::DeletePod {
                name, uid, version, ..
            } => {
                let result = match (self.precondition(&name, &uid, version), fate) {
                    (_, Fate::Refused) => Err(refused()),
                    (_, Fate::Unclear) => Err(unclear()),
                    (Err(error), _) => Err(error),
                    (Ok(()), _) => {
                        self.pods.get_mut(&name).unwrap().deleting = true;
                        self.publish(&name);
                        Ok(())
                    }
                };
                let result = result.and_then(|()| match fate {
                    Fate::Lost => Err(unclear()),
                    _ => Ok(()),
                });
                self.answers.push(Input::Deleted { name, uid, result });
            }
            Output::WriteStatus { version, status } => self.write_status(version, *status, fate),
            Output::Restart {
                name,
                uid,
                version,
                containers,
                ..
            } => self.restart_containers(name, uid, version, &containers, fate),
            other => panic!("not asked for here: {other:?}"),
        }
    }

    fn write_status(&mut self, version: Version, status: PoolStatus, fate: Fate) {
        let known = self.pool.as_ref().map(|pool| pool.version);
        let result = match (known, fate) {
            (None, _) => Err(WriteError::NotFound),
            (_, Fate::Refused) => Err(refused()),
            (_, Fate::Unclear) => Err(unclear()),
            (Some(known), _) if known != version => Err(WriteError::Conflict),
            _ => {
                let version = self.version();
                let pool = self.pool.as_mut().unwrap();
                pool.status = status;
                pool.version = version;
                self.pool_events.push_back(self.pool.clone());
                match fate {
                    Fate::Lost => Err(unclear()),
                    _ => Ok(version),
                }
            }
        };
        self.answers.push(Input::StatusWritten(result));
    }

    fn restart_containers(
        &mut self,
        name: String,
        uid: String,
        version: Version,
        containers: &[String],
        fate: Fate,
    ) {
        let result = match (self.precondition(&name, &uid, Some(version)), fate) {
            (_, Fate::Refused) => Err(refused()),
            (_, Fate::Unclear) => Err(unclear()),
            (Err(error), _) => Err(error),
            (Ok(()), _) => {
                let new = format!("containerd://{name}-{}", self.version);
                let pod = self.pods.get_mut(&name).unwrap();
                for container in &mut pod.containers {
                    if containers.contains(&container.name) {
                        container.id = Some(new.clone());
                    }
                }
                self.publish(&name);
                Ok(Arc::new(self.pods[&name].clone()))
            }
        };
        let result = result.and_then(|view| match fate {
            Fate::Lost => Err(unclear()),
            _ => Ok(view),
        });
        self.answers.push(Input::Restarted { name, uid, result });
    }

    pub(super) fn precondition(
        &self,
        name: &str,
        uid: &str,
        version: Option<Version>,
    ) -> Result<(), WriteError> {
        match self.pods.get(name) {
            None => Err(WriteError::NotFound),
            Some(pod) if pod.uid != uid => Err(WriteError::Conflict),
            Some(pod) if version.is_some_and(|version| version != pod.version) => {
                Err(WriteError::Conflict)
            }
            Some(_) => Ok(()),
        }
    }

    pub(super) fn make(&mut self, name: &str, pod: &Value) -> Arc<PodView> {
        let metadata = &pod["metadata"];
        let version = self.version();
        let view = PodView {
            uid: format!("{name}-{version}"),
            version,
            created: self.now,
            revision: metadata["labels"][labels::POOL_REVISION]
                .as_str()
                .map(str::to_owned),
            owner: Some(Owner {
                kind: "Pool".to_owned(),
                name: POOL.to_owned(),
                uid: metadata["ownerReferences"][0]["uid"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            }),
            ..pod_view(name)
        };
        self.pods.insert(name.to_owned(), view);
        self.publish(name);
        Arc::new(self.pods[name].clone())
    }

    pub(super) fn live(&mut self, number: usize, life: Life) {
        if self.pods.is_empty() {
            return;
        }
        let name = self
            .pods
            .keys()
            .nth(number % self.pods.len())
            .unwrap()
            .clone();
        let now = self.now;
        let pod = self.pods.get_mut(&name).unwrap();
        match life {
            _ if pod.deleting => return self.end(&name),
            Life::Vanishes => return self.end(&name),
            Life::Ends => return,
            Life::Ready | Life::Unready | Life::Fails if pod.has_ended() => return,
            Life::Ready => {
                pod.phase = PodPhase::Running;
                pod.ready = true;
                pod.ready_since = Some(now);
                pod.ip = Some("10.1.1.1".to_owned());
                pod.trouble = None;
            }
            Life::Unready => {
                pod.ready = false;
                pod.ready_since = Some(now);
            }
            Life::Fails => {
                pod.phase = PodPhase::Failed;
                pod.ready = false;
            }
            Life::Deleted => pod.deleting = true,
            Life::Evict => pod.evict = true,
        }
        self.publish(&name);
    }

    pub(super) fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::Numbers(buffer, more, least, room) => {
                self.spec["capacitySpec"] = json!({
                    "bufferMin": buffer, "bufferMax": buffer + more,
                    "poolMin": least, "poolMax": least + room,
                });
            }
            Edit::Template(image) => {
                self.spec["template"]["spec"]["containers"][0]["image"] =
                    json!(format!("i:{image}"));
            }
            Edit::Recycle(kind) => {
                let kind = ["Delete", "Noop", "Restart"][usize::from(kind % 3)];
                self.spec["recycleStrategy"] = json!({ "type": kind });
            }
            Edit::Gone => {
                if self.pool.take().is_some() {
                    self.pool_events.push_back(None);
                    // The garbage collector.
                    for name in self.pods.keys().cloned().collect::<Vec<_>>() {
                        self.pods.get_mut(&name).unwrap().deleting = true;
                        self.publish(&name);
                    }
                }
                return;
            }
            Edit::Back => {}
        }
        let version = self.version();
        let uid = match &self.pool {
            Some(pool) => pool.uid.clone(),
            None if matches!(edit, Edit::Back) => format!("pool-{version}"),
            None => return,
        };
        let status = self
            .pool
            .as_ref()
            .map(|pool| pool.status.clone())
            .unwrap_or_default();
        let view = PoolView {
            status,
            ..(*pool_view(&uid, version.0, &self.spec, &json!({}))).clone()
        };
        self.pool = Some(view.clone());
        self.pool_events.push_back(Some(view));
    }
}
