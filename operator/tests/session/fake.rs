//! An executor that says what a test wants, byte by byte.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Method and target, such as `POST /setTasks`.
    pub(crate) line: String,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn orders(&self) -> bool {
        self.line == "POST /setTasks"
    }
}

/// The executor; it ends with this.
pub(crate) struct Fake {
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    count: watch::Receiver<usize>,
    _serving: JoinSet<()>,
}

impl Fake {
    /// One that answers each request by `answer`, which gets the request, the number of those before it, and
    /// the connection. `true` from it: more requests on the same connection.
    pub(crate) async fn start<F, A>(answer: A) -> Self
    where
        A: Fn(Request, usize, Arc<tokio::sync::Mutex<TcpStream>>) -> F + Send + Sync + 'static,
        F: Future<Output = bool> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (counter, count) = watch::channel(0);
        let answer = Arc::new(answer);
        let mut serving = JoinSet::new();
        let all = Arc::clone(&requests);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, all, counter) =
                    (Arc::clone(&answer), Arc::clone(&all), counter.clone());
                connections.spawn(async move {
                    let stream = Arc::new(tokio::sync::Mutex::new(stream));
                    loop {
                        let read = read(&mut *stream.lock().await).await;
                        let Some(request) = read else {
                            return;
                        };
                        let number = {
                            let mut all = all.lock().unwrap();
                            all.push(request.clone());
                            all.len() - 1
                        };
                        counter.send_replace(number + 1);
                        if !answer(request, number, Arc::clone(&stream)).await {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            port,
            requests,
            count,
            _serving: serving,
        }
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many orders there were.
    pub(crate) fn orders(&self) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.orders())
            .count()
    }

    /// Waits until there were so many requests.
    pub(crate) async fn until_requests(&mut self, least: usize) {
        let reached = self.count.wait_for(|count| *count >= least);
        let reached = tokio::time::timeout(super::desk::BOUND, reached)
            .await
            .is_ok();
        assert!(reached, "only {:?}", self.requests());
    }
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await.ok()?;
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request {
        line: head
            .lines()
            .next()
            .unwrap()
            .trim_end_matches(" HTTP/1.1")
            .to_owned(),
        body: String::from_utf8(body).unwrap(),
    })
}

/// Writes; whether the other side still takes it.
pub(crate) async fn write(stream: &tokio::sync::Mutex<TcpStream>, bytes: &[u8]) -> bool {
    stream.lock().await.write_all(bytes).await.is_ok()
}

/// Waits until the other side has left.
pub(crate) async fn wait_for_end(stream: &tokio::sync::Mutex<TcpStream>) {
    let mut byte = [0];
    while matches!(stream.lock().await.read(&mut byte).await, Ok(1..)) {}
}

/// A watch of these tasks, each as JSON, until the other side has left.
pub(crate) async fn stay(stream: &tokio::sync::Mutex<TcpStream>, tasks: &[&str]) {
    write(stream, WATCH.as_bytes()).await;
    write(stream, list(tasks).as_bytes()).await;
    wait_for_end(stream).await;
}

/// A whole answer.
pub(crate) fn answer(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The head of a watch; what follows ends with the connection.
pub(crate) const WATCH: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n";

/// A watch of a list of these tasks, each as JSON.
pub(crate) fn list(tasks: &[&str]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("{\"type\":\"reset\",\"cursor\":\"0\"}\n");
    for task in tasks {
        writeln!(text, r#"{{"type":"added","cursor":"1","task":{task}}}"#).unwrap();
    }
    text.push_str("{\"type\":\"bookmark\",\"cursor\":\"1\"}\n");
    text
}
