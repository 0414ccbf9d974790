//! From a request to its answer.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::{Body, Incoming};
use opensandbox_api::task::Health;
use serde_json::Value;

use super::activity::InFlight;
use super::answer::{self, Answer};
use super::auth::{Auth, Denial, Pass};
use super::body::{self, Bounds};
use super::parse;
use super::query;
use super::quota::Source;
use super::route::{Resolution, Route, resolve};
use super::streams::Streams;
use super::tasks::{CreateErrorKind, Readiness, Tasks, Wanted};
use super::validate::check;
use crate::clock;
use crate::metrics::{self, Metrics};

/// The label `route` of requests that lead to none.
const NO_ROUTE: &str = "none";

/// Everything that requests need.
pub(super) struct Api<T> {
    pub(super) tasks: Arc<T>,
    pub(super) auth: Auth,
    pub(super) metrics: Arc<Metrics>,
    pub(super) bodies: Bounds,
    pub(super) streams: Streams,
}

impl<T: Tasks> Api<T> {
    /// Answers a request from `source`.
    pub(super) async fn respond(
        &self,
        request: Request<Incoming>,
        source: Source,
        mut in_flight: InFlight,
    ) -> Answer {
        let (head, mut body) = request.into_parts();
        let resolution = resolve(&head.method, head.uri.path());
        let label = match &resolution {
            Resolution::Found(route) => route.as_str(),
            _ => NO_ROUTE,
        };
        let mut answer = match resolution {
            Resolution::Found(route) if route.is_open() => self.open(&route, &head),
            resolution => {
                self.closed(resolution, &head, &mut body, source, &mut in_flight)
                    .await
            }
        };
        if !body.is_end_stream() {
            answer::close(&mut answer);
        }
        self.metrics.answered(label, answer.status().as_u16());
        answer.body_mut().in_flight = Some(in_flight);
        answer
    }

    /// What everybody may ask.
    fn open(&self, route: &Route, head: &Parts) -> Answer {
        match route {
            Route::Ready => {
                let mut readiness = self.readiness();
                if !query::verbose(head.uri.query()) {
                    readiness.details = Value::Null;
                }
                let status = if readiness.ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                answer::json(status, &readiness)
            }
            Route::Metrics => {
                self.metrics.set_ready(self.readiness().ready);
                self.metrics.measured(self.tasks.measured());
                let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
                match self.metrics.encode() {
                    Ok(text) => answer::typed(StatusCode::OK, kind, text),
                    Err(error) => {
                        tracing::error!(%error, "cannot write the metrics");
                        answer::empty(StatusCode::INTERNAL_SERVER_ERROR)
                    }
                }
            }
            _ => answer::json(StatusCode::OK, &Health::healthy()),
        }
    }

    fn readiness(&self) -> Readiness {
        let mut readiness = self.tasks.readiness();
        if let Some(problem) = self.auth.problem() {
            readiness.ready = false;
            problem.clone_into(&mut readiness.reason);
        }
        readiness
    }

    /// What only the operator may ask.
    async fn closed(
        &self,
        resolution: Resolution,
        head: &Parts,
        body: &mut Incoming,
        source: Source,
        in_flight: &mut InFlight,
    ) -> Answer {
        let pass = match self.auth.check(head, clock::unix_millis() / 1000) {
            Ok(pass) => pass,
            Err(denial) => return self.deny(&denial),
        };
        in_flight.trust();
        match resolution {
            Resolution::Found(route) => self.route(route, head, body, source, &pass).await,
            Resolution::Redirect(path) => answer::redirect(&head.method, &path, head.uri.query()),
            Resolution::NotFound => answer::not_found(),
            Resolution::MethodNotAllowed(allow) => answer::method_not_allowed(allow),
            Resolution::BadRequest => answer::bad_request(),
            Resolution::Options => answer::empty(StatusCode::OK),
        }
    }

    fn deny(&self, denial: &Denial) -> Answer {
        self.metrics.auth_rejected(denial.reason);
        tracing::debug!(reason = denial.reason, "refused a request");
        answer::unauthorized(&denial.message, denial.had_token)
    }

    async fn route(
        &self,
        route: Route,
        head: &Parts,
        body: &mut Incoming,
        source: Source,
        pass: &Pass,
    ) -> Answer {
        let takes_body = matches!(route, Route::SetTasks | Route::CreateTask);
        if !takes_body && !pass.is_signed() {
            return self.read_only(route, head, source);
        }
        let read = match body::read(body, source, &self.bodies).await {
            Ok(read) => read,
            Err(problem) => return problem.answer(),
        };
        if let Err(denial) = pass.check_body(&read.bytes) {
            return self.deny(&denial);
        }
        match route {
            Route::SetTasks => self.set_tasks(&read.bytes).await,
            Route::CreateTask => self.create_task(&read.bytes).await,
            other => self.read_only(other, head, source),
        }
    }

    async fn set_tasks(&self, body: &[u8]) -> Answer {
        let tasks = match parse::tasks(body) {
            Ok(tasks) => tasks,
            Err(problem) => return invalid_body(&problem),
        };
        let wanted = tasks.into_iter().map(|task| Wanted {
            refusal: check(&task).err().map(|refusal| refusal.message),
            task,
        });
        match self.tasks.set(wanted.collect()).await {
            Ok(tasks) => answer::json(StatusCode::OK, &tasks),
            Err(error) => answer::error(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("failed to sync tasks: {}", error.messages.join("\n")),
            ),
        }
    }

    async fn create_task(&self, body: &[u8]) -> Answer {
        let task = match parse::task(body) {
            Ok(task) => task,
            Err(problem) => return invalid_body(&problem),
        };
        if let Err(refusal) = check(&task) {
            return if refusal.fails_upstream {
                failed_to_create(StatusCode::INTERNAL_SERVER_ERROR, &refusal.message)
            } else {
                answer::error(StatusCode::BAD_REQUEST, refusal.message)
            };
        }
        match self.tasks.create(task).await {
            Ok(task) => answer::json(StatusCode::CREATED, &task),
            Err(error) => {
                let status = match error.kind {
                    CreateErrorKind::Invalid => StatusCode::BAD_REQUEST,
                    CreateErrorKind::Exists | CreateErrorKind::Full | CreateErrorKind::Other => {
                        StatusCode::INTERNAL_SERVER_ERROR
                    }
                };
                failed_to_create(status, &error.message)
            }
        }
    }

    /// Routes without a body.
    fn read_only(&self, route: Route, head: &Parts, source: Source) -> Answer {
        let is_head = head.method == Method::HEAD;
        match route {
            Route::GetTask(id) => match self.tasks.get(&id) {
                Some(task) => answer::json(StatusCode::OK, &task),
                None => no_task(&id),
            },
            Route::DeleteTask(id) => {
                self.tasks.delete(&id);
                answer::empty(StatusCode::NO_CONTENT)
            }
            Route::ListTasks => match query::list(head.uri.query()) {
                Ok(query) if query.watch && !is_head => {
                    let events = self.tasks.watch(query.cursor.as_deref());
                    self.streams.watch(source, events)
                }
                Ok(_) => answer::json(StatusCode::OK, &self.tasks.list()),
                Err(problem) => answer::error(StatusCode::BAD_REQUEST, problem),
            },
            Route::Logs(id) => match query::logs(head.uri.query()) {
                Ok(query) => match self.tasks.logs(&id, query.stream) {
                    Some(log) => self.streams.log(source, log, query),
                    None => no_task(&id),
                },
                Err(problem) => answer::error(StatusCode::BAD_REQUEST, problem),
            },
            _ => answer::json(StatusCode::OK, &self.tasks.list()),
        }
    }
}

fn invalid_body(problem: &str) -> Answer {
    answer::error(
        StatusCode::BAD_REQUEST,
        format!("invalid request body: it {problem}"),
    )
}

fn failed_to_create(status: StatusCode, problem: &str) -> Answer {
    answer::error(status, format!("failed to create task: {problem}"))
}

fn no_task(id: &str) -> Answer {
    let message = format!("task not found: task {id} not found");
    answer::error(StatusCode::NOT_FOUND, message)
}
