//! Executors that are none, or that want to harm: each costs its own sandbox and nothing else.

use std::sync::Arc;

use opensandbox_operator::session::{State, Work};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::desk::{Desk, new_key, run};
use crate::fake::{Fake, Request, WATCH, answer, list, stay, wait_for_end, write};

const SECRET: &str = "s3cret";

/// What an executor does with its first requests, before it behaves.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Garbage,
    Silence,
    EndlessHead,
    EndlessLine,
    SlowBytes,
    Crumbs,
    NoEvent,
    ManyTasks,
    Redirect,
    Cut,
    HugeLength,
}

async fn do_harm(harm: Harm, stream: &Mutex<TcpStream>) {
    match harm {
        Harm::Garbage => {
            write(stream, &[0xff; 4096]).await;
        }
        Harm::Silence => wait_for_end(stream).await,
        Harm::EndlessHead => {
            write(stream, b"HTTP/1.1 200 OK\r\n").await;
            while write(stream, b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await {}
        }
        Harm::EndlessLine => {
            write(stream, WATCH.as_bytes()).await;
            while write(stream, &[b'a'; 8192]).await {}
        }
        Harm::SlowBytes => {
            write(stream, WATCH.as_bytes()).await;
            while write(stream, b"a").await {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        Harm::Crumbs => {
            let head = WATCH.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n");
            write(stream, head.as_bytes()).await;
            let crumbs = b"1\r\na\r\n".repeat(1000);
            while write(stream, &crumbs).await {}
        }
        Harm::NoEvent => {
            write(stream, WATCH.as_bytes()).await;
            write(stream, SECRET.as_bytes()).await;
            write(stream, b"\n").await;
        }
        Harm::ManyTasks => {
            let tasks: Vec<_> = (0..300)
                .map(|number| format!(r#"{{"name":"{number}"}}"#))
                .collect();
            let tasks: Vec<_> = tasks.iter().map(String::as_str).collect();
            stay(stream, &tasks).await;
        }
        Harm::Redirect => {
            write(
                stream,
                b"HTTP/1.1 302 X\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n",
            )
            .await;
        }
        Harm::Cut => {
            write(stream, WATCH.as_bytes()).await;
            write(stream, &list(&[]).as_bytes()[..20]).await;
        }
        Harm::HugeLength => {
            write(
                stream,
                b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n[",
            )
            .await;
        }
    }
}

#[tokio::test]
async fn whatever_it_sends_is_bounded_reported_and_forgiven() {
    let harms = [
        Harm::Garbage,
        Harm::Silence,
        Harm::EndlessHead,
        Harm::EndlessLine,
        Harm::SlowBytes,
        Harm::Crumbs,
        Harm::NoEvent,
        Harm::ManyTasks,
        Harm::Redirect,
        Harm::Cut,
        Harm::HugeLength,
    ];
    let each = harms.map(|harm| async move {
        let good = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let now = Arc::clone(&good);
        let fake = Fake::start(move |_, _, stream| {
            let good = now.load(std::sync::atomic::Ordering::SeqCst);
            async move {
                if good {
                    stay(&stream, &[]).await;
                } else {
                    do_harm(harm, &stream).await;
                }
                false
            }
        })
        .await;
        let mut desk = Desk::quick(fake.port, vec![new_key()]);
        desk.order(Work::Look);
        let words = desk.until_unreachable().await;
        assert!(
            !words.contains(SECRET) && words.len() < 1024,
            "{harm:?}: {words}"
        );
        good.store(true, std::sync::atomic::Ordering::SeqCst);
        desk.until_empty().await;
    });
    futures::future::join_all(each).await;
}

#[tokio::test]
async fn what_it_says_when_it_refuses_is_bounded() {
    let fake = Fake::start(|_, _, stream| async move {
        let words = format!(r#"{{"code":"x","message":"{}"}}"#, "no! ".repeat(1000));
        write(&stream, &answer(403, &words)).await
    })
    .await;
    let mut desk = Desk::quick(fake.port, vec![new_key()]);
    desk.order(run("s.0.1", &["true", SECRET]));
    let words = desk.until_refused().await;
    assert!(
        words.starts_with("403: no! no!") && words.len() < 1024,
        "{words}"
    );
    assert!(!words.contains(SECRET));
}

/// A list of many tasks, over and over, and a client that must not spend itself on it.
#[tokio::test]
async fn a_flood_of_events_keeps_no_order_back() {
    let mut fake = Fake::start(|request: Request, _, stream| async move {
        if request.orders() {
            return write(&stream, &answer(200, "[]")).await;
        }
        write(&stream, WATCH.as_bytes()).await;
        write(&stream, list(&[]).as_bytes()).await;
        let event = r#"{"type":"added","cursor":"1","task":{"name":"a"}}"#;
        let other = event.replace("added", "deleted");
        let flood = format!("{event}\n{other}\n").repeat(100);
        while write(&stream, flood.as_bytes()).await {}
        false
    })
    .await;
    let mut desk = Desk::quick(fake.port, vec![new_key()]);
    desk.order(Work::Look);
    desk.until_empty().await;
    let event = desk.next().await.state;
    assert!(matches!(event, State::Tasks(_)), "{event:?}");
    desk.order(Work::Clear);
    desk.until_empty().await;
    fake.until_requests(2).await;
    assert_eq!(fake.orders(), 1);
}
