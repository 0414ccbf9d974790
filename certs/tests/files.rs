//! The mode with files, on real directories laid out as kubelet does: `tls.crt` is a link to
//! `..data/tls.crt`, `..data` is a link to a directory, and an update swaps the latter.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use opensandbox_certs::authority::Authority;
use opensandbox_certs::bundle::{self, Fingerprint};
use opensandbox_certs::files::{self, Error, Settings, load};
use opensandbox_certs::probe::call;
use opensandbox_certs::{ServingCertificate, Status, Trigger};
use rcgen::{CertificateParams, Issuer, KeyPair};
use support::{authority, listen, names, now};
use tokio::sync::{oneshot, watch};

/// The three files of one issue.
struct Issue {
    chain: String,
    key: String,
    ca: String,
}

/// cert-manager's issue: the crate itself gives no key away, so this one signs by other means.
fn issue(authority: &Authority) -> Issue {
    let (ca, key) = authority.to_pem();
    let issuer = KeyPair::from_pem(&key).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&ca, issuer).expect("an issuer");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(names()).expect("names");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    Issue {
        chain: certificate.pem(),
        key: key.serialize_pem(),
        ca,
    }
}

fn write(directory: &Path, issue: &Issue) {
    fs::write(directory.join("tls.crt"), &issue.chain).expect("writable");
    fs::write(directory.join("tls.key"), &issue.key).expect("writable");
    fs::write(directory.join("ca.crt"), &issue.ca).expect("writable");
}

/// What kubelet does for version `version` of a Secret.
fn mount(directory: &Path, version: &str, issue: &Issue) {
    let content = directory.join(format!("..{version}"));
    fs::create_dir(&content).expect("writable");
    write(&content, issue);
    symlink(format!("..{version}"), directory.join("..data_tmp")).expect("writable");
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("writable");
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), link).expect("writable");
        }
    }
}

fn served(issue: &Issue) -> Option<Fingerprint> {
    let chain = bundle::parse(issue.chain.as_bytes()).expect("certificates");
    chain.first().map(Fingerprint::of)
}

async fn reached(status: &mut watch::Receiver<Status>, state: impl FnMut(&Status) -> bool) {
    let limit = Duration::from_mins(1);
    let found = tokio::time::timeout(limit, status.wait_for(state)).await;
    let found = found.map(|found| found.is_ok());
    assert!(found == Ok(true), "not reached: {:?}", *status.borrow());
}

#[tokio::test]
async fn pair_is_taken_over_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let serving = ServingCertificate::new();
    let listener = listen(&serving).await;
    let (sender, mut status) = watch::channel(Status::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let settings = Settings {
        directory: path.to_owned(),
        poll: Duration::from_millis(5),
        configurations: Vec::new(),
        read_back: Duration::from_secs(30),
        endpoint: listener.endpoint.clone(),
        prove_interval: Duration::from_mins(5),
        trigger: Trigger::default(),
    };
    let shutdown = async {
        let _ = stopped.await;
    };
    let running = tokio::spawn(files::run(
        None,
        settings,
        serving.clone(),
        sender,
        shutdown,
    ));

    reached(&mut status, |s| {
        s.reason.contains("cannot read") && !s.ready()
    })
    .await;
    assert_eq!(serving.serves(), None);

    let (a, b) = (authority("a"), authority("b"));
    let first = issue(&a);
    mount(path, "1", &first);
    reached(&mut status, Status::ready).await;
    assert_eq!(serving.serves(), served(&first));
    assert_eq!(status.borrow().reason, "");

    // A new authority as well: the proof goes on with the new ca.crt.
    let second = issue(&b);
    mount(path, "2", &second);
    reached(&mut status, |s| s.ready() && s.replaced == 1).await;
    assert_eq!(serving.serves(), served(&second));
    call(&listener.endpoint, &[b.certificate().clone()])
        .await
        .unwrap();

    // Certificate of one pair, key of another.
    let third = issue(&b);
    let content = path.join("..2");
    fs::write(content.join("tls.crt"), &third.chain).unwrap();
    reached(&mut status, |s| s.reason.contains("do not fit")).await;
    assert_eq!(serving.serves(), served(&second));
    assert!(status.borrow().ready(), "the old pair still serves");
    // Half of the key.
    fs::write(content.join("tls.key"), &third.key[..third.key.len() / 2]).unwrap();
    reached(&mut status, |s| s.reason.contains("cannot read the key")).await;
    assert_eq!(serving.serves(), served(&second));
    assert!(!format!("{:?}", *status.borrow()).contains(&third.key[40..60]));
    // The rest of it.
    fs::write(content.join("tls.key"), &third.key).unwrap();
    reached(&mut status, |s| s.reason.is_empty() && s.replaced == 2).await;
    assert_eq!(serving.serves(), served(&third));

    fs::remove_file(content.join("tls.crt")).unwrap();
    reached(&mut status, |s| s.reason.contains("cannot read")).await;
    assert_eq!(serving.serves(), served(&third));
    assert!(status.borrow().ready());

    // A certificate that the ca.crt next to it does not verify is served, but not ready for calls.
    write(
        &content,
        &Issue {
            ca: a.to_pem().0,
            ..issue(&b)
        },
    );
    reached(&mut status, |s| s.serving && !s.proved).await;
    assert!(!status.borrow().ready());

    drop(stop);
    running.await.unwrap();
}

fn check(directory: &Path, issue: &Issue, at: Timestamp) -> Result<(), Error> {
    write(directory, issue);
    load(directory, at).map(drop)
}

#[test]
fn each_defect_has_its_own_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let a = authority("a");
    let good = issue(&a);
    check(path, &good, now()).unwrap();

    // The chain holds a certificate (the authority's) that ends within the hour.
    let chain = format!("{}{}", good.chain, a.to_pem().0);
    let long = Issue {
        chain,
        key: good.key.clone(),
        ca: String::new(),
    };
    check(path, &long, now()).unwrap();
    let late = now() + Duration::from_hours(2);
    assert!(matches!(
        check(path, &long, late),
        Err(Error::Expired { index: 1, .. })
    ));
    let early = now() - Duration::from_hours(2);
    assert!(matches!(
        check(path, &long, early),
        Err(Error::NotYetValid { index: 1, .. })
    ));

    let other = issue(&a);
    let crossed = Issue {
        key: other.key,
        ..issue(&a)
    };
    assert!(matches!(check(path, &crossed, now()), Err(Error::Pair(_))));
    let empty = Issue {
        chain: String::new(),
        ..issue(&a)
    };
    assert!(matches!(check(path, &empty, now()), Err(Error::Empty)));
    let garbage = Issue {
        key: "garbage".to_owned(),
        ..issue(&a)
    };
    assert!(matches!(check(path, &garbage, now()), Err(Error::Key)));
    let broken = good.chain.replace("MII", "!!!");
    let broken = Issue {
        chain: broken,
        ..issue(&a)
    };
    let found = check(path, &broken, now());
    assert!(
        matches!(
            found,
            Err(Error::Certificates {
                file: "tls.crt",
                ..
            })
        ),
        "{found:?}"
    );

    fs::remove_file(path.join("tls.key")).unwrap();
    assert!(matches!(load(path, now()), Err(Error::Read { .. })));
    write(path, &good);
    fs::remove_file(path.join("ca.crt")).unwrap();
    assert!(load(path, now()).unwrap().authorities.is_empty());
}
