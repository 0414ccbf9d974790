//! From method and path to a route, as the `ServeMux` of Go 1.22 to 1.25 does it, which is what
//! upstream's executor is made with: paths are cleaned by a redirect, `GET` takes `HEAD` too, segments
//! are unescaped one by one, and a path that exists under another method is answered with 405.

use http::Method;

/// A route of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    SetTasks,
    GetTasks,
    /// `GET /tasks`, which also is the watch.
    ListTasks,
    CreateTask,
    GetTask(String),
    DeleteTask(String),
    Logs(String),
    Health,
    Ready,
    Metrics,
}

impl Route {
    /// The value of the metric label `route`.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::SetTasks => "setTasks",
            Self::GetTasks => "getTasks",
            Self::ListTasks => "listTasks",
            Self::CreateTask => "createTask",
            Self::GetTask(_) => "getTask",
            Self::DeleteTask(_) => "deleteTask",
            Self::Logs(_) => "logs",
            Self::Health => "health",
            Self::Ready => "readyz",
            Self::Metrics => "metrics",
        }
    }

    /// Whether everybody may ask: what is said there tells nothing of tasks.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Health | Self::Ready | Self::Metrics)
    }
}

/// What a request leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    Found(Route),
    /// To this path, escaped; the query stays.
    Redirect(String),
    NotFound,
    /// With the value of the header `Allow`.
    MethodNotAllowed(&'static str),
    /// The path is not one.
    BadRequest,
    /// `OPTIONS *`.
    Options,
}

/// The route of `method` and the escaped `path`.
pub(super) fn resolve(method: &Method, path: &str) -> Resolution {
    if path == "*" {
        return if *method == Method::OPTIONS {
            Resolution::Options
        } else {
            Resolution::BadRequest
        };
    }
    let Some(segments) = path
        .split('/')
        .skip(1)
        .map(unescape)
        .collect::<Option<Vec<_>>>()
    else {
        return Resolution::BadRequest;
    };
    let cleaned = clean(path);
    if cleaned != path {
        return Resolution::Redirect(cleaned);
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let get = *method == Method::GET || *method == Method::HEAD;
    let post = *method == Method::POST;
    let only_get = |route| if get { Ok(route) } else { Err("GET, HEAD") };
    let found = match segments.as_slice() {
        ["setTasks"] if post => Ok(Route::SetTasks),
        ["setTasks"] => Err("POST"),
        ["getTasks"] => only_get(Route::GetTasks),
        ["health"] => only_get(Route::Health),
        ["readyz"] => only_get(Route::Ready),
        ["metrics"] => only_get(Route::Metrics),
        ["tasks"] if post => Ok(Route::CreateTask),
        ["tasks"] if get => Ok(Route::ListTasks),
        ["tasks"] => Err("GET, HEAD, POST"),
        // Go's patterns do not match an empty segment, and take an escaped slash alone for one.
        ["tasks", "" | "/", ..] => return Resolution::NotFound,
        ["tasks", id] if get => Ok(Route::GetTask((*id).to_owned())),
        ["tasks", id] if *method == Method::DELETE => Ok(Route::DeleteTask((*id).to_owned())),
        ["tasks", _] => Err("DELETE, GET, HEAD"),
        ["tasks", id, "logs"] => only_get(Route::Logs((*id).to_owned())),
        _ => return Resolution::NotFound,
    };
    found.map_or_else(Resolution::MethodNotAllowed, Resolution::Found)
}

/// The path without empty, `.` and `..` segments; a slash at the end stays.
fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let mut cleaned = format!("/{}", kept.join("/"));
    if path.ends_with('/') && cleaned != "/" {
        cleaned.push('/');
    }
    cleaned
}

/// Undoes percent-encoding; bytes that are no UTF-8 become U+FFFD, so that they name nothing that is
/// there. `None` if a `%` is not followed by two hexadecimal digits.
pub(super) fn unescape(text: &str) -> Option<String> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return Some(String::from_utf8_lossy(&bytes).into_owned()),
            [b'%', high, low, rest @ ..] => {
                let value = digit(high)? * 16 + digit(low)?;
                bytes.push(u8::try_from(value).ok()?);
                rest
            }
            [b'%', ..] => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(request: &str, expected: &Resolution) {
        let (method, path) = request.split_once(' ').unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(&resolve(&method, path), expected, "{request}");
    }

    #[test]
    fn paths_lead_where_go_leads_them() {
        let task = |id: &str| Resolution::Found(Route::GetTask(id.to_owned()));
        check("POST /setTasks", &Resolution::Found(Route::SetTasks));
        check("HEAD /getTasks", &Resolution::Found(Route::GetTasks));
        check("GET /%67etTasks", &Resolution::Found(Route::GetTasks));
        check("GET /tasks", &Resolution::Found(Route::ListTasks));
        check("GET /tasks/a%2Fb", &task("a/b"));
        check("GET /tasks/%2e%2e", &task(".."));
        check("GET /tasks/a+b", &task("a+b"));
        check("GET /tasks/a;b", &task("a;b"));
        check("GET /tasks/caf%C3%A9", &task("café"));
        check("GET /tasks/%ff", &task("\u{fffd}"));
        check(
            "DELETE /tasks/a%20b",
            &Resolution::Found(Route::DeleteTask("a b".to_owned())),
        );
        check(
            "GET /tasks/a/logs",
            &Resolution::Found(Route::Logs("a".to_owned())),
        );
        for missing in [
            "/",
            "/nope",
            "/getTasks/",
            "/tasks/",
            "/tasks/%2F",
            "/tasks/a/",
            "/tasks/a/b",
        ] {
            check(&format!("GET {missing}"), &Resolution::NotFound);
        }
    }

    #[test]
    fn other_methods_are_told_the_right_ones() {
        for (request, allow) in [
            ("GET /setTasks", "POST"),
            ("HEAD /setTasks", "POST"),
            ("POST /getTasks", "GET, HEAD"),
            ("OPTIONS /health", "GET, HEAD"),
            ("PUT /tasks", "GET, HEAD, POST"),
            ("POST /tasks/a", "DELETE, GET, HEAD"),
            ("DELETE /tasks/a/logs", "GET, HEAD"),
            ("get /getTasks", "GET, HEAD"),
        ] {
            check(request, &Resolution::MethodNotAllowed(allow));
        }
    }

    #[test]
    fn paths_are_cleaned_before_anything_else() {
        for (request, to) in [
            ("POST //setTasks", "/setTasks"),
            ("GET /a/../getTasks", "/getTasks"),
            ("GET /tasks//a%20b", "/tasks/a%20b"),
            ("GET /tasks/..", "/"),
            ("GET /tasks/a%2Fb/../c", "/tasks/c"),
            ("GET /x//y/", "/x/y/"),
            ("GET //", "/"),
            ("GET /.", "/"),
            ("GET /../../x", "/x"),
        ] {
            check(request, &Resolution::Redirect(to.to_owned()));
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for request in ["GET /tasks/%zz", "GET /%", "GET /%4", "GET *"] {
            check(request, &Resolution::BadRequest);
        }
        check("OPTIONS *", &Resolution::Options);
    }

    proptest! {
        #[test]
        fn cleaned_path_is_clean(path in "/[a./%]{0,12}") {
            let once = clean(&path);
            prop_assert_eq!(clean(&once), once.clone());
            prop_assert!(!once.contains("//"), "it would name a host");
        }
    }
}
