//! What is to be done next about the signing key. Pure: the two objects in, at most one step out.

use opensandbox_api::labels::IMAGES_CONFIG_MAP;

use super::secret::Keys;

/// Most keys at once: with commas 719 bytes, of the 1024 that the published entry may have.
const MOST: usize = 16;

/// What the ConfigMap says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConfigView {
    /// There is none.
    Absent,
    /// There is one.
    Present {
        /// Its UID.
        uid: String,
        /// The published keys.
        published: Option<String>,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a key, and the Secret for it if there is none.
    Make,
    /// Make a new key beside the present one, because this value of the annotation asks for it.
    Rotate(String),
    /// Publish this.
    Publish(String),
}

/// What to do, and what only people can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The next step, if there is one.
    pub(super) step: Option<Step>,
    /// What people should look at, with the remedy; nothing secret.
    pub(super) problems: Vec<String>,
}

/// Decides. A key that cannot be read is never replaced: pods may know it.
pub(super) fn plan(secret: Option<&Keys>, config: &ConfigView) -> Plan {
    let Some(keys) = secret else {
        return Plan {
            step: Some(Step::Make),
            problems: Vec::new(),
        };
    };
    let mut problems = keys.problems.clone();
    let Some(ring) = keys.ring() else {
        return Plan {
            step: (!keys.is_broken).then_some(Step::Make),
            problems,
        };
    };
    if let Some(request) = &keys.rotate {
        if ring.len() < MOST {
            return Plan {
                step: Some(Step::Rotate(request.clone())),
                problems,
            };
        }
        problems.push(format!(
            "no new key is made, since there are {} already; remove entries retired-N.pkcs8 that no pod knows any more",
            ring.len()
        ));
    }
    if ring.len() > MOST {
        problems.push(format!(
            "only the newest {MOST} of {} keys are published; remove entries retired-N.pkcs8",
            ring.len()
        ));
    }
    let wanted = ring.verification_keys();
    let wanted: Vec<_> = wanted.split(',').take(MOST).collect();
    let wanted = wanted.join(",");
    let step = match config {
        ConfigView::Absent => {
            problems.push(format!(
                "there is no ConfigMap {IMAGES_CONFIG_MAP} to publish the verification key in; install it (it may hold nothing else)"
            ));
            None
        }
        ConfigView::Present { published, .. } => {
            (published.as_deref() != Some(wanted.as_str())).then_some(Step::Publish(wanted))
        }
    };
    Plan { step, problems }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opensandbox_api::sidecar::ImagesConfig;
    use opensandbox_api::token::{SigningKey, SystemRandom, Verifier};

    use super::*;

    fn key() -> Arc<SigningKey> {
        let der = SigningKey::generate(&SystemRandom::new()).unwrap();
        Arc::new(SigningKey::from_pkcs8(&der).unwrap())
    }

    fn keys(retired: usize) -> Keys {
        Keys {
            current: Some(key()),
            retired: (0..retired).map(|_| key()).collect(),
            ..Keys::default()
        }
    }

    fn present(published: Option<&str>) -> ConfigView {
        ConfigView::Present {
            uid: "uid".to_owned(),
            published: published.map(str::to_owned),
        }
    }

    fn step(keys: &Keys, config: &ConfigView) -> Option<Step> {
        plan(Some(keys), config).step
    }

    #[test]
    fn a_key_is_made_once_and_a_broken_one_never_replaced() {
        assert_eq!(plan(None, &ConfigView::Absent).step, Some(Step::Make));
        assert_eq!(step(&Keys::default(), &present(None)), Some(Step::Make));
        let broken = Keys {
            is_broken: true,
            rotate: Some("now".to_owned()),
            problems: vec!["no key".to_owned()],
            ..Keys::default()
        };
        let plan = plan(Some(&broken), &present(Some("old")));
        assert_eq!((plan.step, plan.problems.len()), (None, 1));
    }

    #[test]
    fn what_is_published_is_written_when_it_is_wrong_and_not_otherwise() {
        for retired in [0, 1, 7] {
            let keys = keys(retired);
            let value = keys.ring().unwrap().verification_keys();
            for published in [None, Some(""), Some("other"), Some(&value[1..])] {
                let expected = Some(Step::Publish(value.clone()));
                assert_eq!(step(&keys, &present(published)), expected);
            }
            assert_eq!(plan(Some(&keys), &present(Some(&value))), Plan::default());
        }
    }

    #[test]
    fn no_config_map_is_made() {
        let plan = plan(Some(&keys(0)), &ConfigView::Absent);
        assert_eq!(plan.step, None);
        assert!(plan.problems[0].contains(IMAGES_CONFIG_MAP));
    }

    #[test]
    fn a_rotation_comes_before_its_publication_and_stops_at_the_bound() {
        let mut some = keys(MOST - 2);
        some.rotate = Some("a".to_owned());
        let expected = Some(Step::Rotate("a".to_owned()));
        assert_eq!(step(&some, &present(None)), expected);
        let mut full = keys(MOST - 1);
        full.rotate = Some("a".to_owned());
        let plan = plan(Some(&full), &present(None));
        assert!(matches!(plan.step, Some(Step::Publish(_))), "{plan:?}");
        assert_eq!(plan.problems.len(), 1);
    }

    #[test]
    fn whatever_is_published_can_be_injected_and_read() {
        for retired in [0, MOST - 1, 3 * MOST] {
            let Some(Step::Publish(value)) = step(&keys(retired), &present(None)) else {
                panic!("to be published");
            };
            Verifier::from_base64_list(&value).unwrap();
            let (config, bad) = ImagesConfig::read("ns", |name| {
                (name == "taskExecutorVerificationKey").then_some(value.as_str())
            });
            assert_eq!(
                (config.verification_key, bad),
                (Some(value.clone()), vec![])
            );
        }
    }
}
