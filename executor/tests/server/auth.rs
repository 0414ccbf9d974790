//! Orders come from the operator or not at all.

use opensandbox_api::token::{Claims, Request, SigningKey, SystemRandom, random_id};
use task_executor::clock::unix_millis;
use task_executor::config::AuthSetting;
use task_executor::server::{Auth, Limits};

use crate::harness::{Answer, Running};

const POD: &str = "0b4c7b1e-6a0e-4a35-8f0e-2a1d4f3c5b6a";
const LIST: &str = r#"[{"name":"a","process":{"command":["true"]}}]"#;

struct Operator(SigningKey);

fn now() -> u64 {
    unix_millis() / 1000
}

impl Operator {
    fn new() -> Self {
        let der = SigningKey::generate(&SystemRandom::new()).unwrap();
        Self(SigningKey::from_pkcs8(&der).unwrap())
    }

    fn token(&self, request: &str, body: &str) -> String {
        self.0.sign_claims(&claims(request, body))
    }

    async fn executor(&self) -> Running {
        let key = self.0.verification_key();
        let auth = Auth::new(AuthSetting::Signed, Some(&key), Some(POD), 0);
        Running::start(auth, Limits::default()).await
    }
}

fn claims(request: &str, body: &str) -> Claims {
    let (method, target) = request.split_once(' ').unwrap();
    let request = Request {
        pod_uid: POD,
        method,
        target,
    };
    let id = random_id(&SystemRandom::new()).unwrap();
    Claims::new(&request, body.as_bytes(), &id, now())
}

async fn ask(server: &Running, request: &str, token: &str, body: &str) -> Answer {
    let header = format!("Authorization: Bearer {token}\r\n");
    let mut client = server.connect().await;
    client.ask_with(request, &header, body).await.unwrap()
}

fn is_refused(answer: &Answer, part: &str) {
    assert_eq!(answer.status, 401, "{part}: {answer:?}");
    assert_eq!(answer.json()["code"], "Unauthorized");
    assert!(answer.message().contains(part), "{}", answer.message());
    assert_eq!(
        answer.header("www-authenticate"),
        Some(r#"Bearer error="invalid_token""#)
    );
}

#[tokio::test]
async fn signed_requests_are_served_once() {
    let operator = Operator::new();
    let server = operator.executor().await;
    let request = "POST /setTasks";
    let token = operator.token(request, LIST);
    assert_eq!(ask(&server, request, &token, LIST).await.status, 200);
    is_refused(&ask(&server, request, &token, LIST).await, "used before");
    is_refused(&ask(&server, request, &token, "[]").await, "used before");
    for request in [
        "GET /getTasks",
        "GET /tasks?x=%20y",
        "GET /tasks/a",
        "GET /tasks/a/logs?stream=stderr",
    ] {
        let token = operator.token(request, "");
        assert_eq!(
            ask(&server, request, &token, "").await.status,
            200,
            "{request}"
        );
    }
    let delete = "DELETE /tasks/a";
    assert_eq!(
        ask(&server, delete, &operator.token(delete, ""), "")
            .await
            .status,
        204
    );
    let nothing = "GET /nothing";
    assert_eq!(
        ask(&server, nothing, &operator.token(nothing, ""), "")
            .await
            .status,
        404
    );
    assert_eq!(server.tasks.created(), ["a"]);
    assert!(server.has_metric(r#"auth_rejections_total{reason="replayed"} 2"#));
}

#[tokio::test]
async fn without_a_token_only_health_readiness_and_metrics_are_told() {
    let operator = Operator::new();
    let server = operator.executor().await;
    for request in [
        "POST /setTasks",
        "GET /getTasks",
        "GET /tasks",
        "GET /tasks?watch=true",
        "POST /tasks",
        "GET /tasks/a",
        "DELETE /tasks/a",
        "GET /tasks/a/logs",
        "GET /",
        "POST /health",
        "GET //health",
        "GET /%zz",
    ] {
        let body = if request.starts_with("POST") {
            LIST
        } else {
            ""
        };
        let answer = server.ask(request, body).await;
        assert_eq!(answer.status, 401, "{request}");
        assert!(
            answer.message().contains("a signed token is needed"),
            "{request}"
        );
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    for open in [
        "GET /health",
        "HEAD /health",
        "GET /readyz",
        "GET /readyz?verbose",
        "GET /metrics",
    ] {
        assert_eq!(server.ask(open, "").await.status, 200, "{open}");
    }
    assert!(server.tasks.created().is_empty());
    let reason = r#"auth_rejections_total{reason="missing"} 12"#;
    assert!(server.has_metric(reason));
}

#[tokio::test]
async fn tokens_for_something_else_are_refused_and_nothing_is_run() {
    let operator = Operator::new();
    let server = operator.executor().await;
    let request = "POST /setTasks";
    let signed = |change: &dyn Fn(&mut Claims)| {
        let mut claims = claims(request, LIST);
        change(&mut claims);
        operator.0.sign_claims(&claims)
    };
    let good = signed(&|_| ());
    let (signed_part, _) = good.rsplit_once('.').unwrap();
    let (_, payload) = signed_part.split_once('.').unwrap();
    let cases = [
        (
            signed(&|claims| claims.exp = claims.iat),
            "time of validity",
        ),
        (
            signed(&|claims| {
                claims.iat -= 120;
                claims.exp -= 120;
            }),
            "expired",
        ),
        (
            signed(&|claims| {
                claims.iat += 30;
                claims.exp += 30;
            }),
            "from the future",
        ),
        (signed(&|claims| claims.exp += 3600), "time of validity"),
        (
            signed(&|claims| claims.aud = "another".to_owned()),
            "another pod",
        ),
        (signed(&|claims| claims.aud = String::new()), "another pod"),
        (signed(&|claims| claims.iss = "x".to_owned()), "issuer"),
        (
            signed(&|claims| claims.htm = "GET".to_owned()),
            "another method",
        ),
        (
            signed(&|claims| claims.htu = "/tasks".to_owned()),
            "another path",
        ),
        (
            signed(&|claims| claims.htu.push_str("?x=1")),
            "another path",
        ),
        (signed(&|claims| claims.jti.clear()), "malformed"),
        (Operator::new().token(request, LIST), "signature"),
        (format!("{signed_part}."), "signature"),
        (signed_part.to_owned(), "malformed"),
        (format!("eyJhbGciOiJub25lIn0.{payload}."), "EdDSA"),
        (hs256(&operator.0.verification_key(), payload), "EdDSA"),
        ("garbage".to_owned(), "malformed"),
        (String::new(), "Bearer"),
        ("a".repeat(10_000), "malformed"),
    ];
    for (token, part) in &cases {
        is_refused(&ask(&server, request, token, LIST).await, part);
    }
    // The body as altered, shortened, absent, or sent where there was none.
    for body in [&LIST.replace("true", "evil"), &LIST[1..], ""] {
        is_refused(
            &ask(&server, request, &operator.token(request, LIST), body).await,
            "another body",
        );
    }
    let get = "GET /getTasks";
    is_refused(
        &ask(&server, get, &operator.token(get, ""), "x").await,
        "another body",
    );
    let delete = "DELETE /tasks/a";
    is_refused(
        &ask(&server, delete, &operator.token("DELETE /tasks/b", ""), "").await,
        "another path",
    );
    assert!(server.tasks.created().is_empty());
    assert_eq!(
        ask(&server, request, &good, LIST).await.status,
        200,
        "as it is, it would have been served"
    );
}

/// The public key, as an attacker knows it, taken for a shared secret.
fn hs256(key: &str, payload: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
    let signed = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#));
    let tag = ring::hmac::sign(&secret, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

#[tokio::test]
async fn other_forms_of_authorization_are_refused() {
    let operator = Operator::new();
    let server = operator.executor().await;
    let request = "GET /getTasks";
    let token = || operator.token(request, "");
    let headers = [
        format!("Authorization: Basic {}\r\n", token()),
        format!("Authorization: {}\r\n", token()),
        format!(
            "Authorization: Bearer {}\r\nAuthorization: Bearer {}\r\n",
            token(),
            token()
        ),
        "Authorization: Bearer \u{e4}\r\n".to_owned(),
    ];
    for header in &headers {
        let mut client = server.connect().await;
        is_refused(
            &client.ask_with(request, header, "").await.unwrap(),
            "one Bearer token",
        );
    }
    let mut client = server.connect().await;
    let header = format!("authorization: bearer  {}\r\n", token());
    assert_eq!(
        client.ask_with(request, &header, "").await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn either_of_two_keys_counts() {
    let (old, new, foreign) = (Operator::new(), Operator::new(), Operator::new());
    let keys = format!("{},{}", old.0.verification_key(), new.0.verification_key());
    let auth = Auth::new(AuthSetting::Signed, Some(&keys), Some(POD), 0);
    let server = Running::start(auth, Limits::default()).await;
    let request = "GET /getTasks";
    for (operator, status) in [(&old, 200), (&new, 200), (&foreign, 401)] {
        assert_eq!(
            ask(&server, request, &operator.token(request, ""), "")
                .await
                .status,
            status
        );
    }
}

#[tokio::test]
async fn tokens_from_before_the_start_are_refused() {
    let operator = Operator::new();
    let key = operator.0.verification_key();
    let started = now();
    let auth = Auth::new(AuthSetting::Signed, Some(&key), Some(POD), started);
    let server = Running::start(auth, Limits::default()).await;
    let request = "GET /getTasks";
    for (issued, status) in [(started - 10, 401), (started, 401), (started + 1, 200)] {
        let mut claims = claims(request, "");
        claims.iat = issued;
        claims.exp = issued + 60;
        let answer = ask(&server, request, &operator.0.sign_claims(&claims), "").await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[tokio::test]
async fn an_executor_without_key_or_pod_serves_nobody_and_says_why() {
    let operator = Operator::new();
    let key = operator.0.verification_key();
    for (key, pod, part) in [
        (None, Some(POD), "no key"),
        (Some("AAAA"), Some(POD), "not an Ed25519"),
        (Some(key.as_str()), None, "UID of its pod"),
        (Some(key.as_str()), Some(""), "UID of its pod"),
    ] {
        let auth = Auth::new(AuthSetting::Signed, key, pod, 0);
        let server = Running::start(auth, Limits::default()).await;
        let request = "POST /setTasks";
        let answer = ask(&server, request, &operator.token(request, LIST), LIST).await;
        assert_eq!(answer.status, 401);
        assert!(answer.message().contains(part), "{}", answer.message());
        assert!(server.tasks.created().is_empty());
        let ready = server.ask("GET /readyz", "").await;
        assert_eq!(ready.status, 503);
        assert!(ready.json()["reason"].as_str().unwrap().contains(part));
        assert_eq!(server.ask("GET /health", "").await.status, 200);
    }
}

#[tokio::test]
async fn a_body_without_a_token_is_not_read() {
    let operator = Operator::new();
    let server = operator.executor().await;
    let mut client = server.connect().await;
    let head = crate::harness::head(
        "POST /setTasks",
        "Content-Length: 1000000\r\nExpect: 100-continue\r\n",
    );
    client.send(head).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 401, "and not 100");
}

#[tokio::test]
async fn the_watch_is_authenticated_at_its_start() {
    let operator = Operator::new();
    let server = operator.executor().await;
    let request = "GET /tasks?watch=true&cursor=0";
    let other = operator.token("GET /tasks?watch=true", "");
    is_refused(&ask(&server, request, &other, "").await, "another path");
    let mut client = server.connect().await;
    let header = format!("Authorization: Bearer {}\r\n", operator.token(request, ""));
    client
        .send(crate::harness::head(request, &header))
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    server.tasks.add("a");
    assert_eq!(client.event().await["task"]["name"], "a");
}
