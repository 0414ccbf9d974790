use proptest::prelude::*;
use ring::hmac;

use super::*;

const NOW: u64 = 1_800_000_000;
const REQUEST: Request<'_> = Request {
    pod_uid: "pod-1",
    method: "POST",
    target: "/setTasks",
};

fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate(&SystemRandom::new()).unwrap()).unwrap()
}

fn verifier(key: &SigningKey) -> Verifier {
    Verifier::from_base64_list(&key.verification_key()).unwrap()
}

fn check(key: &SigningKey, change: impl FnOnce(&mut Claims)) -> Result<(), Reject> {
    let mut claims = Claims::new(&REQUEST, b"[]", &[7; 16], NOW);
    change(&mut claims);
    let token = key.sign_claims(&claims);
    let verified = verifier(key).verify(&token, &REQUEST, NOW)?;
    verified.body_is(b"[]")
}

#[test]
fn token_holds_for_its_request_and_nothing_else() {
    let key = key();
    assert_eq!(check(&key, |_| ()), Ok(()));
    assert_eq!(
        check(&key, |claims| claims.iss.push('x')),
        Err(Reject::Issuer)
    );
    assert_eq!(check(&key, |claims| claims.aud.push('x')), Err(Reject::Pod));
    assert_eq!(
        check(&key, |claims| claims.htm = "GET".into()),
        Err(Reject::Method)
    );
    assert_eq!(
        check(&key, |claims| claims.htu.push('?')),
        Err(Reject::Target)
    );
    assert_eq!(
        check(&key, |claims| claims.body = body_hash(b"")),
        Err(Reject::Body)
    );
    assert_eq!(
        check(&key, |claims| claims.jti.truncate(10)),
        Err(Reject::Malformed)
    );
    let token = key.sign(&REQUEST, b"", &[1; 16], NOW);
    let nowhere = Request {
        pod_uid: "",
        ..REQUEST
    };
    assert_eq!(
        verifier(&key).verify(&token, &nowhere, NOW),
        Err(Reject::Pod)
    );
}

#[test]
fn times_are_exact() {
    let key = key();
    let at = |iat: u64, exp: u64| {
        check(&key, |claims| {
            claims.iat = iat;
            claims.exp = exp;
        })
    };
    assert_eq!(at(NOW - 59, NOW + 1), Ok(()));
    assert_eq!(at(NOW - 60, NOW), Err(Reject::Expired));
    assert_eq!(at(NOW + 5, NOW + 65), Ok(()));
    assert_eq!(at(NOW + 6, NOW + 66), Err(Reject::Future));
    assert_eq!(at(NOW, NOW + 61), Err(Reject::Life));
    assert_eq!(at(NOW, NOW), Err(Reject::Life));
    assert_eq!(at(NOW + 1, NOW), Err(Reject::Life));
    assert_eq!(at(0, u64::MAX), Err(Reject::Life));
    assert_eq!(at(u64::MAX - 1, u64::MAX), Err(Reject::Future));
}

#[test]
fn other_algorithms_are_refused() {
    let key = key();
    let token = key.sign(&REQUEST, b"[]", &[7; 16], NOW);
    let mut parts = token.split('.');
    let (_, payload, signature) = (
        parts.next().unwrap(),
        parts.next().unwrap(),
        parts.next().unwrap(),
    );
    let refused = |token: &str| verifier(&key).verify(token, &REQUEST, NOW).unwrap_err();
    let header = |json: &str| URL_SAFE_NO_PAD.encode(json);
    for none in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None"}"#,
        r#"{"alg":"eddsa"}"#,
    ] {
        let unsigned = format!("{}.{payload}.", header(none));
        assert_eq!(refused(&unsigned), Reject::Algorithm, "{none}");
    }
    // The public key taken for a shared secret.
    let signed = format!("{}.{payload}", header(r#"{"alg":"HS256"}"#));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, key.0.public_key().as_ref());
    let tag = hmac::sign(&secret, signed.as_bytes());
    let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
    assert_eq!(refused(&forged), Reject::Algorithm);
    // A header that says EdDSA, over a signature for another header, an empty or no signature.
    let other = header(r#"{"alg":"EdDSA"}"#);
    assert_eq!(
        refused(&format!("{other}.{payload}.{signature}")),
        Reject::Signature
    );
    assert_eq!(refused(&format!("{other}.{payload}.")), Reject::Signature);
    assert_eq!(refused(&format!("{other}.{payload}")), Reject::Malformed);
    let critical = header(r#"{"alg":"EdDSA","crit":["b64"],"b64":false}"#);
    assert_eq!(
        refused(&format!("{critical}.{payload}.{signature}")),
        Reject::Algorithm
    );
}

#[test]
fn each_of_several_keys_counts_and_no_other() {
    let (old, new, foreign) = (key(), key(), key());
    let list = format!("{}, {}", old.verification_key(), new.verification_key());
    let both = Verifier::from_base64_list(&list).unwrap();
    for key in [&old, &new] {
        let token = key.sign(&REQUEST, b"[]", &[7; 16], NOW);
        assert_eq!(both.verify(&token, &REQUEST, NOW).unwrap().id, [7; 16]);
    }
    let token = foreign.sign(&REQUEST, b"[]", &[7; 16], NOW);
    assert_eq!(both.verify(&token, &REQUEST, NOW), Err(Reject::Signature));
}

#[test]
fn what_is_no_key_is_refused() {
    for text in [
        "",
        "x",
        "AAAA",
        ",",
        &format!("{},", key().verification_key()),
    ] {
        assert_eq!(
            Verifier::from_base64_list(text).unwrap_err(),
            KeyError::Public,
            "{text}"
        );
    }
    assert_eq!(SigningKey::from_pkcs8(b"x").unwrap_err(), KeyError::Private);
}

proptest! {
    #[test]
    fn no_text_is_a_token(text in "\\PC{0,200}", dots in "[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,90}") {
        let verifier = verifier(&key());
        prop_assert!(verifier.verify(&text, &REQUEST, NOW).is_err());
        prop_assert!(verifier.verify(&dots, &REQUEST, NOW).is_err());
    }

    #[test]
    fn no_token_survives_a_changed_byte(position in 0_usize..400, to in any::<u8>()) {
        let key = key();
        let mut bytes = key.sign(&REQUEST, b"[]", &[7; 16], NOW).into_bytes();
        let position = position % bytes.len();
        prop_assume!(bytes[position] != to && to.is_ascii());
        bytes[position] = to;
        let text = String::from_utf8(bytes).unwrap();
        prop_assert!(verifier(&key).verify(&text, &REQUEST, NOW).is_err());
    }
}
