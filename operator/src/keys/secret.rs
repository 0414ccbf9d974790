//! The keys in their Secret: their form, read and changed. Pure.
//!
//! ```text
//! ed25519.pkcs8          the key that signs, PKCS #8, DER
//! retired-N.pkcs8        one that signed before, the largest N last; remove the entry to forget it
//! annotations            sandbox.opensandbox.io/rotate   set by people: a new value asks for a new key
//!                        sandbox.opensandbox.io/rotated  the last value that was handled
//! ```
//!
//! Everything else on the object is left as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::core::ObjectMeta;
use opensandbox_api::token::SigningKey;

use super::{KeyRing, Settings};

const CURRENT: &str = "ed25519.pkcs8";
const RETIRED: (&str, &str) = ("retired-", ".pkcs8");
const ROTATE: &str = "sandbox.opensandbox.io/rotate";
const ROTATED: &str = "sandbox.opensandbox.io/rotated";

/// What a Secret holds.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The key that signs, if there is one that can be read.
    pub(super) current: Option<Arc<SigningKey>>,
    /// The others, newest first.
    pub(super) retired: Vec<Arc<SigningKey>>,
    /// Whether there is an entry for the key that signs, although it cannot be read.
    pub(super) is_broken: bool,
    /// The value that asks for a new key, if it was not handled yet.
    pub(super) rotate: Option<String>,
    /// What makes no sense, for people; nothing of a key.
    pub(super) problems: Vec<String>,
}

impl Keys {
    /// All of them, if there is one that signs.
    pub(super) fn ring(&self) -> Option<KeyRing> {
        let current = Arc::clone(self.current.as_ref()?);
        let mut all = vec![current];
        all.extend(self.retired.iter().map(Arc::clone));
        Some(KeyRing::new(all))
    }
}

/// Reads a Secret.
pub(super) fn read(secret: &Secret) -> Keys {
    let mut keys = Keys::default();
    let current = secret.data.as_ref().and_then(|data| data.get(CURRENT));
    // An empty entry is how manifests reserve one.
    if let Some(ByteString(der)) = current.filter(|der| !der.0.is_empty()) {
        if let Ok(key) = SigningKey::from_pkcs8(der) {
            keys.current = Some(Arc::new(key));
        } else {
            keys.is_broken = true;
            keys.problems.push(format!(
                "entry {CURRENT} is not an Ed25519 private key in PKCS #8; put the key back, or remove the entry"
            ));
        }
    }
    let entries = secret.data.iter().flatten();
    let mut retired: Vec<_> = entries
        .filter_map(|(name, der)| Some((number(name)?, name, der)))
        .collect();
    retired.sort_by_key(|(number, ..)| std::cmp::Reverse(*number));
    for (_, name, ByteString(der)) in retired {
        match SigningKey::from_pkcs8(der) {
            Ok(key) => keys.retired.push(Arc::new(key)),
            Err(error) => keys.problems.push(format!("entry {name}: {error}")),
        }
    }
    let annotation = |name: &str| secret.metadata.annotations.as_ref()?.get(name);
    keys.rotate = annotation(ROTATE)
        .filter(|value| annotation(ROTATED) != Some(*value))
        .cloned();
    keys
}

/// The number in the name of an entry with a retired key.
fn number(name: &str) -> Option<u32> {
    let number = name.strip_prefix(RETIRED.0)?.strip_suffix(RETIRED.1)?;
    number.parse().ok()
}

/// A Secret with this key.
pub(super) fn create(settings: &Settings, der: Vec<u8>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(settings.secret.clone()),
            namespace: Some(settings.namespace.clone()),
            labels: Some(settings.labels.clone()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(CURRENT.to_owned(), ByteString(der))])),
        ..Secret::default()
    }
}

/// The Secret as it was last, after somebody has deleted it.
pub(super) fn restore(settings: &Settings, last: &Secret) -> Secret {
    let mut secret = create(settings, Vec::new());
    secret.data.clone_from(&last.data);
    let annotations = last.metadata.annotations.clone();
    secret.metadata.annotations = annotations.map(|mut annotations| {
        annotations.retain(|name, _| name == ROTATE || name == ROTATED);
        annotations
    });
    secret
}

/// The Secret with the keys that it had last, after somebody has taken away the one that signs.
pub(super) fn refill(mut secret: Secret, last: &Secret) -> Secret {
    let data = secret.data.get_or_insert_default();
    // Somebody who left some of the others chose which.
    let chosen = data.keys().any(|name| number(name).is_some());
    for (name, der) in last.data.iter().flatten() {
        if name == CURRENT || (number(name).is_some() && !chosen) {
            data.insert(name.clone(), der.clone());
        }
    }
    secret
}

/// The Secret with this key, which had none.
pub(super) fn fill(mut secret: Secret, der: Vec<u8>) -> Secret {
    let data = secret.data.get_or_insert_default();
    data.insert(CURRENT.to_owned(), ByteString(der));
    secret
}

/// The Secret with this key, and the one before kept beside it; `request` is what asked for it.
pub(super) fn rotate(mut secret: Secret, der: Vec<u8>, request: String) -> Secret {
    let data = secret.data.get_or_insert_default();
    let last = data.keys().filter_map(|name| number(name)).max();
    if let Some(before) = data.insert(CURRENT.to_owned(), ByteString(der)) {
        let next = last.map_or(1, |last| last.saturating_add(1));
        data.insert(format!("{}{next}{}", RETIRED.0, RETIRED.1), before);
    }
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.insert(ROTATED.to_owned(), request);
    secret
}

#[cfg(test)]
mod tests {
    use opensandbox_api::token::SystemRandom;

    use super::*;

    fn settings() -> Settings {
        Settings {
            namespace: "ns".to_owned(),
            secret: "key".to_owned(),
            labels: BTreeMap::from([("part-of".to_owned(), "us".to_owned())]),
        }
    }

    fn der() -> Vec<u8> {
        SigningKey::generate(&SystemRandom::new()).unwrap()
    }

    fn public(der: &[u8]) -> String {
        SigningKey::from_pkcs8(der).unwrap().verification_key()
    }

    #[test]
    fn what_was_made_is_read_again() {
        let key = der();
        let secret = create(&settings(), key.clone());
        let keys = read(&secret);
        assert_eq!(keys.ring().unwrap().verification_keys(), public(&key));
        assert_eq!((keys.rotate, keys.problems.len()), (None, 0));
        assert_eq!(secret.metadata.name.as_deref(), Some("key"));
        assert!(secret.metadata.labels.unwrap().contains_key("part-of"));
    }

    #[test]
    fn rotations_keep_what_signed_before_newest_first() {
        let ders: Vec<_> = (0..12).map(|_| der()).collect();
        let mut secret = create(&settings(), ders[0].clone());
        secret
            .data
            .get_or_insert_default()
            .insert("other".to_owned(), ByteString(vec![1]));
        for (round, der) in ders.iter().enumerate().skip(1) {
            let request = round.to_string();
            let annotations = secret.metadata.annotations.get_or_insert_default();
            annotations.insert(ROTATE.to_owned(), request.clone());
            assert_eq!(read(&secret).rotate.as_deref(), Some(request.as_str()));
            secret = rotate(secret, der.clone(), request);
            assert_eq!(read(&secret).rotate, None, "handled once");
        }
        let expected: Vec<_> = ders.iter().rev().map(|der| public(der)).collect();
        let keys = read(&secret);
        assert_eq!(keys.ring().unwrap().verification_keys(), expected.join(","));
        assert!(secret.data.unwrap().contains_key("other"));
    }

    #[test]
    fn a_removed_entry_is_forgotten_and_its_number_not_needed() {
        let (one, two, three) = (der(), der(), der());
        let secret = create(&settings(), one);
        let mut secret = rotate(secret, two.clone(), "a".to_owned());
        secret
            .data
            .get_or_insert_default()
            .remove("retired-1.pkcs8")
            .unwrap();
        assert_eq!(read(&secret).retired.len(), 0);
        let secret = rotate(secret, three.clone(), "b".to_owned());
        let expected = format!("{},{}", public(&three), public(&two));
        assert_eq!(read(&secret).ring().unwrap().verification_keys(), expected);
    }

    #[test]
    fn what_is_no_key_is_reported_and_never_shown() {
        let mut secret = create(&settings(), b"s3cret".to_vec());
        let data = secret.data.get_or_insert_default();
        data.insert("retired-1.pkcs8".to_owned(), ByteString(b"s3cret".to_vec()));
        data.insert("retired-x.pkcs8".to_owned(), ByteString(b"s3cret".to_vec()));
        let keys = read(&secret);
        assert!(keys.is_broken && keys.ring().is_none());
        assert_eq!(keys.problems.len(), 2, "{:?}", keys.problems);
        assert!(!format!("{keys:?}").contains("s3cret"));
        let empty = read(&create(&settings(), vec![]));
        assert!(!empty.is_broken && empty.current.is_none());
    }

    #[test]
    fn a_deleted_secret_is_restored_as_it_was() {
        let mut last = rotate(create(&settings(), der()), der(), "a".to_owned());
        last.metadata.uid = Some("old".to_owned());
        let annotations = last.metadata.annotations.get_or_insert_default();
        annotations.insert("other".to_owned(), "x".to_owned());
        annotations.insert(ROTATE.to_owned(), "a".to_owned());
        let restored = restore(&settings(), &last);
        let keys = |secret: &Secret| read(secret).ring().unwrap().verification_keys();
        assert_eq!(keys(&restored), keys(&last));
        assert_eq!(read(&restored).rotate, None, "handled before");
        assert_eq!(restored.metadata.uid, None);
    }

    #[test]
    fn an_emptied_secret_gets_back_what_it_had() {
        let last = rotate(create(&settings(), der()), der(), "a".to_owned());
        let keys = |secret: &Secret| read(secret).ring().unwrap().verification_keys();
        for data in [
            None,
            Some(BTreeMap::from([(CURRENT.to_owned(), ByteString(vec![]))])),
        ] {
            let mut emptied = last.clone();
            emptied.data = data;
            emptied.metadata.resource_version = Some("7".to_owned());
            let refilled = refill(emptied, &last);
            assert_eq!(keys(&refilled), keys(&last));
            assert_eq!(
                refilled.metadata.resource_version.as_deref(),
                Some("7"),
                "compare and swap"
            );
        }
        // Somebody removed a retired key, and later the one that signs.
        let last = rotate(last, der(), "b".to_owned());
        let mut emptied = last.clone();
        let data = emptied.data.get_or_insert_default();
        data.remove(CURRENT).unwrap();
        data.remove("retired-1.pkcs8").unwrap();
        assert_eq!(read(&refill(emptied, &last)).retired.len(), 1);
    }

    #[test]
    fn an_empty_secret_is_filled() {
        let key = der();
        let secret = Secret {
            metadata: ObjectMeta {
                resource_version: Some("7".to_owned()),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        };
        let secret = fill(secret, key.clone());
        assert_eq!(
            read(&secret).ring().unwrap().verification_keys(),
            public(&key)
        );
        assert_eq!(
            secret.metadata.resource_version.as_deref(),
            Some("7"),
            "compare and swap"
        );
    }
}
