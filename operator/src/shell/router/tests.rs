use opensandbox_api::sidecar::{InjectionDefault, default_image};
use serde_json::json;

use super::*;
use crate::lease::Leadership;
use crate::protocol::{Standing, Statement};
use crate::session::Order;
use crate::shell::actor::Executors;
use crate::shell::events::Events;
use crate::shell::metrics::Metrics;
use crate::shell::world::InjectionDefaults;
use crate::shell::writer::Writer;
use crate::view::parse;

struct Silent;

impl Executors for Silent {
    fn set(&self, _: &str, _: Vec<Order>) {}
}

/// A router whose actors may write nothing, with one watch.
fn router() -> Router {
    let metrics = Arc::new(Metrics::default());
    let url = "http://127.0.0.1:9".parse().unwrap();
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    let (router, _) = mpsc::unbounded_channel();
    let (events, _) = Events::new(Arc::clone(&metrics));
    let context = Context {
        writer: Writer::new(client, Leadership::of_nobody(), Arc::clone(&metrics)),
        events,
        metrics,
        executors: Box::new(Silent),
        router,
        upstream_executors: false,
    };
    let world = World::new(InjectionDefaults {
        namespace: "system".to_owned(),
        default: InjectionDefault::Enabled,
        image: default_image(),
    });
    let choose = Box::new(|_: &SandboxView, pools: &[Arc<PoolView>], _: &World| {
        let first = pools.first().ok_or("there is none")?;
        Ok(first.key.name.clone())
    });
    Router::new(world, ["all".to_owned()], choose, Arc::new(context))
}

/// One that leads already.
fn leading() -> Router {
    let mut router = router();
    router.take(listed(0));
    router.take(lead(0));
    router
}

fn listed(round: u64) -> Message {
    Message::Listed {
        watch: "all".to_owned(),
        round,
    }
}

fn lead(round: u64) -> Message {
    Message::Lead(Lead {
        round,
        fence: None,
        since: Timestamp::UNIX_EPOCH,
    })
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

fn pool(name: &str) -> Message {
    let object = json!({"metadata": {"namespace": "ns", "name": name, "uid": "u"}});
    Message::Change(Change::Pool(Arc::new(parse::pool(&object).unwrap())))
}

fn sandbox(name: &str, uid: &str) -> Message {
    let object = json!({
        "metadata": {"namespace": "ns", "name": name, "uid": uid},
        "spec": {"replicas": 0},
    });
    Message::Change(Change::Sandbox(Arc::new(parse::sandbox(&object).unwrap())))
}

fn reference(name: &str, uid: &str) -> SandboxRef {
    SandboxRef {
        key: key(name),
        uid: uid.to_owned(),
    }
}

fn pools(router: &Router) -> Vec<String> {
    let leading = router.leading.as_ref();
    let mut names: Vec<_> = leading
        .iter()
        .flat_map(|leading| leading.pools.keys())
        .map(|key| key.name.clone())
        .collect();
    names.sort();
    names
}

fn sandboxes(router: &Router) -> Vec<String> {
    let leading = router.leading.as_ref();
    let mut uids: Vec<_> = leading
        .iter()
        .flat_map(|leading| leading.sandboxes.keys().cloned())
        .collect();
    uids.sort();
    uids
}

fn sent_to(router: &Router, uid: &str) -> u64 {
    router.leading.as_ref().unwrap().sandboxes[uid]
        .address
        .sent()
}

#[tokio::test]
async fn a_leader_begins_when_every_list_is_newer_than_its_lead() {
    let mut router = router();
    router.take(pool("p"));
    router.take(sandbox("s", "1"));
    router.take(listed(0));
    assert!(router.leading.is_none(), "it does not lead");
    router.take(lead(1));
    assert!(router.leading.is_none(), "what it knows may be old");
    router.take(listed(0));
    assert!(router.leading.is_none(), "so may this be");
    router.take(listed(1));
    assert_eq!(pools(&router), ["p"]);
    assert_eq!(sandboxes(&router), ["1"]);
    router.take(listed(2));
    assert_eq!(sandboxes(&router), ["1"]);
}

#[tokio::test]
async fn a_pool_that_does_not_exist_gets_an_actor_when_a_sandbox_names_it() {
    let mut router = leading();
    let message = |message| Message::ToPool {
        pool: key("missing"),
        message,
    };
    router.take(message(ToPool::Left {
        sandbox: reference("s", "1"),
    }));
    assert!(pools(&router).is_empty(), "there is nothing to leave");
    router.take(message(ToPool::Statement(Statement {
        sandbox: reference("s", "1"),
        standing: Standing {
            made_out: false,
            created: Timestamp::UNIX_EPOCH,
        },
        queued: Timestamp::UNIX_EPOCH,
        holds: Vec::new(),
        returns: Vec::new(),
        wants: 1,
        replicas: 1,
    })));
    assert_eq!(pools(&router), ["missing"]);
    let idle = |handled| Message::PoolIdle {
        key: key("missing"),
        handled,
    };
    router.take(idle(0));
    assert_eq!(pools(&router), ["missing"], "it was sent something since");
    router.take(idle(1));
    assert!(pools(&router).is_empty());
}

#[tokio::test]
async fn an_object_made_anew_has_another_actor() {
    let mut router = leading();
    router.take(sandbox("s", "1"));
    router.take(sandbox("s", "1"));
    assert_eq!(sent_to(&router, "1"), 1);
    router.take(sandbox("s", "2"));
    assert_eq!(
        sandboxes(&router),
        ["1", "2"],
        "the old one has yet to leave"
    );
    assert_eq!(sent_to(&router, "1"), 2);
    router.take(Message::SandboxDone {
        uid: "1".to_owned(),
    });
    assert_eq!(sandboxes(&router), ["2"]);
}

#[tokio::test]
async fn an_object_that_is_done_is_not_begun_again_by_an_old_event() {
    let mut router = leading();
    router.take(sandbox("s", "1"));
    router.take(Message::SandboxDone {
        uid: "1".to_owned(),
    });
    router.take(sandbox("s", "1"));
    assert!(sandboxes(&router).is_empty());
    router.take(Message::Change(Change::SandboxGone(key("s"))));
    assert!(router.leading.as_ref().unwrap().done.is_empty());
}

#[tokio::test]
async fn a_question_for_a_pool_is_answered_with_those_of_the_namespace() {
    let mut router = leading();
    router.take(sandbox("s", "1"));
    router.take(pool("p"));
    let assign = |uid: &str| Message::Assign {
        sandbox: reference("s", uid),
    };
    router.take(assign("1"));
    assert_eq!(sent_to(&router, "1"), 1);
    router.take(assign("other"));
    assert_eq!(sent_to(&router, "1"), 1);
}
