//! A small Kubernetes API server in the test process: enough of one that real clients, watches and
//! reconcilers run against it, and faults can be put in their way.
//!
//! What it has: create and delete (dry runs too), get, list, watch (with replay, bookmarks and expiry), update,
//! merge and apply patch, the status subresource, generations, finalizers, preconditions, field selectors. What it
//! hasn't: schemas, admission, paging, label selectors, garbage collection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::response::IntoResponse;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

type Bytes = axum::body::Bytes;
type Reply = Response<BoxBody<Bytes, Infallible>>;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The connection breaks before anything is done.
    Disconnect,
    /// It is done, and the connection breaks before the answer.
    DisconnectAfter,
    /// It is answered with this status, and nothing is done.
    Status(u16),
    /// The same with this message, and dry runs are let pass.
    Refuse(u16, &'static str),
}

/// A request that was made.
struct Asked {
    user: &'static str,
    method: Method,
    path: String,
}

/// Which requests a fault is for, and how many of them.
struct Rule {
    method: Method,
    path: String,
    times: usize,
    fault: Fault,
}

/// One change of one object.
#[derive(Clone)]
struct Change {
    version: u64,
    resource: String,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Default)]
struct State {
    version: u64,
    serial: u64,
    /// By resource (`group/plural`), then by `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    history: Vec<Change>,
    /// Changes up to here are forgotten: a watch from before gets 410.
    expired: u64,
    rules: VecDeque<Rule>,
    requests: Vec<Asked>,
    down: bool,
    /// Kinds whose definitions are deleted.
    undefined: BTreeSet<String>,
}

/// The server. Clones share its objects.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    /// The newest version: wakes the watches.
    newest: watch::Sender<u64>,
    /// Counts the times that all watches were cut.
    cuts: watch::Sender<u64>,
    latency: Duration,
    user: &'static str,
}

impl ApiServer {
    pub fn new() -> Self {
        let server = Self {
            state: Arc::default(),
            newest: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
            latency: Duration::from_millis(2),
            user: "",
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system",
                                                                                    "uid": "cluster-1"}});
        server.put("namespaces", "kube-system", namespace);
        server
    }

    /// A server that takes this long for each request.
    pub fn with_latency(latency: Duration) -> Self {
        Self { latency, ..Self::new() }
    }

    /// The same server as somebody else sees it, whose requests are told from others'.
    pub fn as_user(&self, user: &'static str) -> Self {
        Self { user, ..self.clone() }
    }

    /// A client of this server.
    pub fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.serve(request).await }
        });
        kube::Client::new(service, "kube-system")
    }

    /// Puts a fault on the next `times` requests of this method whose path contains `path`.
    pub fn inject(&self, method: Method, path: &str, times: usize, fault: Fault) {
        self.lock().rules.push_back(Rule { method, path: path.to_owned(), times, fault });
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.lock().rules.clear();
    }

    /// Serves it on a port of this machine, for programs; where.
    pub async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = self.clone();
        let answer = move |request: axum::extract::Request| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let reply = server.serve(Request::from_parts(parts, Body::from(body.to_vec()))).await;
                reply.map_or_else(
                    |_| StatusCode::BAD_GATEWAY.into_response(),
                    |reply| reply.map(axum::body::Body::new).into_response(),
                )
            }
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        address
    }

    /// Ends every watch that is open, as a restart of the server does.
    pub fn cut_watches(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }

    /// Forgets the history, so that watches that are behind have to list again.
    pub fn expire(&self) {
        let mut state = self.lock();
        // The version moves on, as it does by the changes of others.
        state.version += 1;
        state.expired = state.version;
        state.history.clear();
    }

    /// From now on nobody is answered, or everybody is again.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
        if down {
            self.cut_watches();
        }
    }

    /// Deletes the definition of a kind with all its objects, whatever finalizers they have, or puts the
    /// definition back without them.
    pub fn define(&self, resource: &str, defined: bool) {
        let mut state = self.lock();
        if defined {
            state.undefined.remove(resource);
        } else {
            state.undefined.insert(resource.to_owned());
            let all = state.objects.get(resource).cloned().unwrap_or_default();
            for (key, object) in all {
                state.remove(resource, &key, object);
            }
        }
        let version = state.version;
        drop(state);
        self.newest.send_replace(version);
        self.cut_watches();
    }

    /// Puts an object there as somebody else would, its status included.
    pub fn put(&self, resource: &str, key: &str, object: Value) {
        let mut state = self.lock();
        let before = state.objects.get(resource).and_then(|all| all.get(key)).cloned();
        state.store(resource, key, before, object);
        let version = state.version;
        drop(state);
        self.newest.send_replace(version);
    }

    /// How many requests there were since the last call, as `METHOD path`.
    pub fn take_requests(&self) -> Vec<String> {
        let asked = std::mem::take(&mut self.lock().requests);
        asked.into_iter().map(|asked| format!("{} {}", asked.method, asked.path)).collect()
    }

    /// What this user has asked for, as RBAC speaks of it: a verb, a group and a resource.
    pub fn asked(&self) -> BTreeSet<(String, String, String)> {
        let state = self.lock();
        state.requests.iter().filter(|asked| asked.user == self.user).filter_map(Asked::rbac).collect()
    }

    /// An object as it is stored.
    pub fn object(&self, resource: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(resource)?.get(name).cloned()
    }

    /// Every object of a resource.
    pub fn objects(&self, resource: &str) -> Vec<Value> {
        self.lock().objects.get(resource).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no request panics while it holds the state")
    }

    async fn serve(&self, request: Request<Body>) -> Result<Reply, io::Error> {
        let broken = || io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke");
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query: BTreeMap<String, String> = parse_query(parts.uri.query().unwrap_or_default());
        tokio::time::sleep(self.latency).await;
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let dry_run = query.get("dryRun").is_some_and(|dry| dry == "All")
            || parts.method == Method::DELETE && is_dry(&serde_json::from_slice(&body).unwrap_or_default());
        let fault = {
            let mut state = self.lock();
            if state.down {
                return Err(broken());
            }
            let shown = if query.contains_key("watch") { format!("{path}?watch") } else { path.clone() };
            state.requests.push(Asked { user: self.user, method: parts.method.clone(), path: shown });
            state.take_fault(&parts.method, &path, dry_run)
        };
        match fault {
            Some(Fault::Disconnect) => return Err(broken()),
            Some(Fault::Status(code)) => return Ok(failure(code, "Injected", "an injected failure")),
            Some(Fault::Refuse(code, message)) => return Ok(failure(code, "Injected", message)),
            Some(Fault::DisconnectAfter) | None => {}
        }
        let Some(target) = Target::parse(&path) else {
            return Ok(failure(404, "NotFound", &format!("there is no {path}")));
        };
        if self.lock().undefined.contains(&target.resource) {
            let body = http_body_util::Full::new(Bytes::from_static(b"404 page not found\n"));
            return Ok(Response::builder().status(404).body(BodyExt::boxed(body)).expect("a response"));
        }
        let reply = if parts.method == Method::GET && query.get("watch").is_some_and(|w| w == "true" || w == "1") {
            self.watch(&target, &query)
        } else {
            let content_type = parts.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let answer = {
                let mut state = self.lock();
                let answer = state.answer(&parts.method, &target, &query, content_type.unwrap_or_default(), &body);
                self.newest.send_replace(state.version);
                answer
            };
            answer.unwrap_or_else(|refusal| failure(refusal.0, refusal.1, &refusal.2))
        };
        if matches!(fault, Some(Fault::DisconnectAfter)) { Err(broken()) } else { Ok(reply) }
    }

    fn watch(&self, target: &Target, query: &BTreeMap<String, String>) -> Reply {
        let from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or_default();
        let timeout: u64 = query.get("timeoutSeconds").and_then(|v| v.parse().ok()).unwrap_or(300);
        let watching = Watching {
            server: self.clone(),
            newest: self.newest.subscribe(),
            cuts: self.cuts.subscribe(),
            resource: target.resource.clone(),
            namespace: target.namespace.clone(),
            selector: query.get("fieldSelector").cloned(),
            bookmarks: query.contains_key("allowWatchBookmarks"),
            until: Instant::now() + Duration::from_secs(timeout),
            seen: from,
            ended: false,
        };
        let lines = stream::unfold(watching, |mut watching| async move {
            let lines = watching.next().await?;
            Some((Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(lines))), watching))
        });
        let body = BodyExt::boxed(StreamBody::new(lines));
        Response::builder().header("content-type", "application/json").body(body).expect("a response")
    }
}

/// An open watch.
struct Watching {
    server: ApiServer,
    newest: watch::Receiver<u64>,
    cuts: watch::Receiver<u64>,
    resource: String,
    namespace: Option<String>,
    selector: Option<String>,
    bookmarks: bool,
    until: Instant,
    seen: u64,
    ended: bool,
}

impl Watching {
    /// The next lines; `None` when the watch is over.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.ended {
                return None;
            }
            let lines = self.lines();
            if !lines.is_empty() {
                return Some(lines);
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                _ = self.cuts.changed() => return None,
                () = tokio::time::sleep_until(self.until) => {
                    self.ended = true;
                    if self.bookmarks {
                        let kind = json!({"type": "BOOKMARK", "object": {
                            "apiVersion": "v1", "kind": "Bookmark", "spec": {"nodeName": "", "size": "0", "deviceGroup": ""},
                            "metadata": {"resourceVersion": self.server.lock().version.to_string(), "name": ""}}});
                        return Some(format!("{kind}\n"));
                    }
                }
            }
        }
    }

    fn lines(&mut self) -> String {
        let state = self.server.lock();
        let mut lines = String::new();
        if self.seen < state.expired {
            // Also a watch that only begins is told so in its stream, as the real one's watch cache does.
            self.ended = true;
            let status = status_object(410, "Expired", "too old resource version");
            return format!("{}\n", json!({"type": "ERROR", "object": status}));
        }
        let news = state.history.partition_point(|change| change.version <= self.seen);
        for change in &state.history[news..] {
            let shown = |object: &Option<Value>| {
                object.as_ref().is_some_and(|object| {
                    change.resource == self.resource
                        && in_namespace(object, self.namespace.as_deref())
                        && selected(object, self.selector.as_deref())
                })
            };
            let kind = match (shown(&change.before), shown(&change.after)) {
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
                (false, false) => continue,
            };
            let mut object = change.after.clone().or_else(|| change.before.clone()).unwrap_or_default();
            object["metadata"]["resourceVersion"] = json!(change.version.to_string());
            lines.push_str(&format!("{}\n", json!({"type": kind, "object": object})));
        }
        self.seen = state.version;
        lines
    }
}

/// What a path names.
struct Target {
    resource: String,
    api_version: String,
    namespace: Option<String>,
    name: Option<String>,
    status: bool,
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let mut parts: VecDeque<&str> = path.trim_matches('/').split('/').collect();
        let (group, version) = match parts.pop_front()? {
            "api" => ("", parts.pop_front()?),
            "apis" => (parts.pop_front()?, parts.pop_front()?),
            _ => return None,
        };
        let namespace = if parts.front() == Some(&"namespaces") && parts.len() > 2 {
            parts.pop_front();
            parts.pop_front().map(str::to_owned)
        } else {
            None
        };
        let plural = parts.pop_front()?;
        let name = parts.pop_front().map(str::to_owned);
        let status = match parts.pop_front() {
            None => false,
            Some("status") => true,
            Some(_) => return None,
        };
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let resource = if group.is_empty() { plural.to_owned() } else { format!("{group}/{plural}") };
        Some(Self { resource, api_version, namespace, name, status })
    }

    fn key(&self, name: &str) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        }
    }
}

impl Asked {
    fn rbac(&self) -> Option<(String, String, String)> {
        let (path, watches) = self.path.strip_suffix("?watch").map_or((self.path.as_str(), false), |path| (path, true));
        let target = Target::parse(path)?;
        let verb = match (self.method.as_str(), &target.name) {
            ("GET", _) if watches => "watch",
            ("GET", None) => "list",
            ("GET", Some(_)) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", _) => "delete",
            _ => return None,
        };
        let (group, plural) = target.resource.split_once('/').unwrap_or(("", &target.resource));
        let resource = if target.status { format!("{plural}/status") } else { plural.to_owned() };
        Some((verb.to_owned(), group.to_owned(), resource))
    }
}

/// A status code, a reason and a message.
type Refusal = (u16, &'static str, String);

impl State {
    fn take_fault(&mut self, method: &Method, path: &str, dry_run: bool) -> Option<Fault> {
        let passes = |rule: &Rule| dry_run && matches!(rule.fault, Fault::Refuse(..));
        let meant = |rule: &Rule| rule.method == *method && path.contains(&rule.path) && !passes(rule);
        let at = self.rules.iter().position(meant)?;
        let rule = &mut self.rules[at];
        rule.times -= 1;
        let fault = rule.fault;
        if rule.times == 0 {
            self.rules.remove(at);
        }
        Some(fault)
    }

    fn answer(
        &mut self,
        method: &Method,
        target: &Target,
        query: &BTreeMap<String, String>,
        content_type: &str,
        body: &[u8],
    ) -> Result<Reply, Refusal> {
        let sent = || -> Result<Value, Refusal> {
            serde_json::from_slice(body).map_err(|e| (400, "BadRequest", format!("the body is no JSON: {e}")))
        };
        match (method, &target.name) {
            (&Method::GET, None) => Ok(self.list(target, query)),
            (&Method::GET, Some(name)) => Ok(reply(200, self.there(target, name)?)),
            (&Method::POST, None) => self.create(target, sent()?, query.get("dryRun").is_some_and(|dry| dry == "All")),
            (&Method::PUT, Some(name)) => {
                let there = self.there(target, name)?.clone();
                let mut next = sent()?;
                check_preconditions(&there, &next)?;
                next["apiVersion"] = there["apiVersion"].clone();
                self.update(target, name, there, next)
            }
            (&Method::PATCH, Some(name)) => {
                let patch = sent()?;
                let apply = content_type.starts_with("application/apply-patch");
                let there = match self.there(target, name) {
                    Ok(there) => there.clone(),
                    Err(_) if apply && !target.status => return self.create(target, patch, false),
                    Err(refusal) => return Err(refusal),
                };
                if !apply && !content_type.starts_with("application/merge-patch") {
                    return Err((415, "UnsupportedMediaType", format!("this server has no {content_type}")));
                }
                check_preconditions(&there, &patch)?;
                let mut next = there.clone();
                merge(&mut next, &patch);
                self.update(target, name, there, next)
            }
            (&Method::DELETE, Some(name)) => {
                let options: Value = if body.is_empty() { json!({}) } else { sent()? };
                self.delete(target, name, &options)
            }
            _ => Err((405, "MethodNotAllowed", "the server does not allow this method".to_owned())),
        }
    }

    fn there(&self, target: &Target, name: &str) -> Result<&Value, Refusal> {
        let object = self.objects.get(&target.resource).and_then(|all| all.get(&target.key(name)));
        object.ok_or_else(|| (404, "NotFound", format!("{} \"{name}\" not found", target.resource)))
    }

    fn list(&self, target: &Target, query: &BTreeMap<String, String>) -> Reply {
        let selector = query.get("fieldSelector").map(String::as_str);
        let all = self.objects.get(&target.resource).into_iter().flat_map(BTreeMap::values);
        let items: Vec<&Value> = all
            .filter(|object| in_namespace(object, target.namespace.as_deref()) && selected(object, selector))
            .collect();
        let list = json!({
            "apiVersion": target.api_version, "kind": "List", "items": items,
            "metadata": {"resourceVersion": self.version.to_string()},
        });
        reply(200, &list)
    }

    fn create(&mut self, target: &Target, mut object: Value, dry_run: bool) -> Result<Reply, Refusal> {
        self.serial += 1;
        let name = match (object["metadata"]["name"].as_str(), object["metadata"]["generateName"].as_str()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(prefix)) => format!("{prefix}{}", self.serial),
            (None, None) => return Err((422, "Invalid", "metadata.name: Required value".to_owned())),
        };
        let key = target.key(&name);
        let all = self.objects.entry(target.resource.clone()).or_default();
        if all.contains_key(&key) {
            return Err((409, "AlreadyExists", format!("{} \"{name}\" already exists", target.resource)));
        }
        if dry_run {
            return Ok(reply(201, &object));
        }
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        metadata["uid"] = json!(format!("uid-{}", self.serial));
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        if let Some(namespace) = &target.namespace {
            metadata["namespace"] = json!(namespace);
        }
        if let Some(object) = object.as_object_mut().filter(|_| target.resource.contains("carina")) {
            object.remove("status");
        }
        let object = self.store(&target.resource, &key, None, object);
        Ok(reply(201, &object))
    }

    /// Puts `next` in the place of `there`, as far as a request of this kind may change it.
    fn update(&mut self, target: &Target, name: &str, there: Value, next: Value) -> Result<Reply, Refusal> {
        let mut object = next;
        let old = &there["metadata"];
        if target.status {
            let status = object["status"].take();
            object = there.clone();
            object["status"] = status;
        } else {
            object["status"] = there["status"].clone();
            if object["status"].is_null() {
                object.as_object_mut().map(|o| o.remove("status"));
            }
            for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "name", "namespace"] {
                object["metadata"][field] = old[field].clone();
            }
            if object["spec"] != there["spec"] {
                object["metadata"]["generation"] = json!(old["generation"].as_i64().unwrap_or_default() + 1);
            }
            drop_nulls(&mut object["metadata"]);
        }
        let key = target.key(name);
        if !old["deletionTimestamp"].is_null() && no_finalizers(&object) {
            self.remove(&target.resource, &key, there);
            return Ok(reply(200, &object));
        }
        // An update that changes nothing makes no new version.
        object["metadata"]["resourceVersion"] = old["resourceVersion"].clone();
        if object == there {
            return Ok(reply(200, &there));
        }
        let object = self.store(&target.resource, &key, Some(there), object);
        Ok(reply(200, &object))
    }

    fn delete(&mut self, target: &Target, name: &str, options: &Value) -> Result<Reply, Refusal> {
        let there = self.there(target, name)?.clone();
        let expected = &options["preconditions"];
        for field in ["uid", "resourceVersion"] {
            if !expected[field].is_null() && expected[field] != there["metadata"][field] {
                return Err((409, "Conflict", format!("the {field} in the precondition is another one")));
            }
        }
        let dry_run = is_dry(options);
        let key = target.key(name);
        if no_finalizers(&there) {
            if dry_run {
                return Ok(reply(200, &there));
            }
            self.remove(&target.resource, &key, there.clone());
            return Ok(reply(200, &there));
        }
        let mut object = there.clone();
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap_or_default() + 1);
            if !dry_run {
                object = self.store(&target.resource, &key, Some(there), object);
            }
        }
        Ok(reply(200, &object))
    }

    fn store(&mut self, resource: &str, key: &str, before: Option<Value>, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.entry(resource.to_owned()).or_default().insert(key.to_owned(), object.clone());
        let resource = resource.to_owned();
        self.history.push(Change { version: self.version, resource, before, after: Some(object.clone()) });
        object
    }

    fn remove(&mut self, resource: &str, key: &str, there: Value) {
        self.version += 1;
        if let Some(all) = self.objects.get_mut(resource) {
            all.remove(key);
        }
        self.history.push(Change {
            version: self.version,
            resource: resource.to_owned(),
            before: Some(there),
            after: None,
        });
    }
}

/// Whether a deletion is only tried, by its options.
fn is_dry(options: &Value) -> bool {
    options["dryRun"].as_array().is_some_and(|stages| stages.iter().any(|stage| stage == "All"))
}

fn check_preconditions(there: &Value, sent: &Value) -> Result<(), Refusal> {
    for field in ["uid", "resourceVersion"] {
        let expected = &sent["metadata"][field];
        if !expected.is_null() && *expected != there["metadata"][field] {
            return Err((409, "Conflict", format!("the object has been modified: its {field} is another one")));
        }
    }
    Ok(())
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|target| target.remove(key));
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(object) = value {
        object.retain(|_, value| !value.is_null());
    }
}

fn no_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

fn in_namespace(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace)
}

/// Whether an object meets a field selector of the form `a.b=c`. A field that is absent is empty, as for the real one.
fn selected(object: &Value, selector: Option<&str>) -> bool {
    let Some((field, wanted)) = selector.and_then(|s| s.split_once('=')) else { return true };
    field.split('.').fold(object, |value, part| &value[part]).as_str().unwrap_or_default() == wanted
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| text.replace('+', " ").replace("%3D", "=").replace("%2C", ",").replace("%2F", "/");
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect()
}

fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code,
           "reason": reason, "message": message})
}

fn failure(code: u16, reason: &str, message: &str) -> Reply {
    reply(code, &status_object(code, reason, message))
}

fn reply(code: u16, body: &Value) -> Reply {
    let body = http_body_util::Full::new(Bytes::from(body.to_string()));
    Response::builder()
        .status(StatusCode::from_u16(code).expect("a status code"))
        .header("content-type", "application/json")
        .body(BodyExt::boxed(body))
        .expect("a response")
}
