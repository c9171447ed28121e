//! An API server that holds one Node and one MIGNode, and records what is written to them.
//!
//! Kept as the real one has it: resource versions, lists and watches from a version on, 404 and 409, generations of `spec`,
//! the status subresource by merge patch or server-side apply. Left out: all other objects, validation, and the fields of an
//! apply that other managers own (nobody else writes a MIGNode's status).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use futures::Stream;
use futures::stream;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use serde_json::{Value, json};
use slicegate::api::mig_node::{MIGNode, MIGNodeSpec, MIGNodeStatus};
use tokio::sync::watch;

use super::kubelet::within;

/// The one name that both objects have.
pub const NODE: &str = "node-1";

/// Where Events about the MIGNode are written.
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Node,
    MigNode,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Node, Self::MigNode];

    fn path(self) -> &'static str {
        match self {
            Self::Node => "/api/v1/nodes",
            Self::MigNode => "/apis/slicegate.dev/v1alpha1/mignodes",
        }
    }

    fn types(self) -> (&'static str, &'static str) {
        match self {
            Self::Node => ("v1", "Node"),
            Self::MigNode => ("slicegate.dev/v1alpha1", "MIGNode"),
        }
    }
}

/// A write of the agent's, with the object after it.
#[derive(Clone, Debug)]
pub struct Write {
    pub kind: Kind,
    pub object: Value,
}

type OnWrite = Box<dyn Fn(&Write) + Send>;

#[derive(Default)]
struct Objects {
    version: u64,
    held: BTreeMap<Kind, Value>,
    /// What watches tell, by version.
    events: Vec<(u64, Kind, Value)>,
    writes: Vec<Write>,
    on_write: Option<OnWrite>,
    failing: u32,
    /// Requests that the agent's role does not allow.
    forbidden: Vec<String>,
}

impl Objects {
    fn put(&mut self, kind: Kind, mut object: Value) -> Value {
        let before = self.held.get(&kind);
        let same = |before: &Value| before["spec"] == object["spec"] && before["status"] == object["status"];
        if let Some(before) = before.filter(|before| same(before)) {
            return before.clone();
        }
        self.version += 1;
        let generation = before.map_or(0, |before| before["metadata"]["generation"].as_u64().unwrap());
        let changed = before.is_none_or(|before| before["spec"] != object["spec"]);
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        object["metadata"]["generation"] = json!(generation + u64::from(changed));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events.push((self.version, kind, json!({"type": event, "object": object})));
        self.held.insert(kind, object.clone());
        object
    }

    fn remove(&mut self, kind: Kind) {
        if let Some(mut object) = self.held.remove(&kind) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.events.push((self.version, kind, json!({"type": "DELETED", "object": object})));
        }
    }
}

struct Shared {
    objects: Mutex<Objects>,
    changes: watch::Sender<()>,
}

/// The API server. Clones are handles of the same.
#[derive(Clone)]
pub struct ApiServer(Arc<Shared>);

impl ApiServer {
    /// With a Node and no MIGNode.
    pub fn new() -> Self {
        let this = Self(Arc::new(Shared { objects: Mutex::default(), changes: watch::Sender::new(()) }));
        this.make_node();
        this
    }

    /// A client of it. Must be called within the runtime of whoever uses it.
    pub fn client(&self) -> Client {
        Client::new(Router::new().fallback(handle).with_state(self.clone()), "default")
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.objects.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Objects) -> T) -> T {
        let result = change(&mut self.objects());
        self.0.changes.send_replace(());
        result
    }

    /// The Node is there, as one that has just registered: without any resource of ours.
    pub fn make_node(&self) {
        let resources = json!({"cpu": "8"});
        let status = json!({"capacity": resources, "allocatable": resources});
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "uid": "node-uid"}, "spec": {}, "status": status,
        });
        self.change(|objects| objects.put(Kind::Node, node));
    }

    /// Deletes an object.
    pub fn remove(&self, kind: Kind) {
        self.change(|objects| objects.remove(kind));
    }

    /// Writes what is wanted, as the controller does.
    pub fn want(&self, spec: &MIGNodeSpec) {
        self.change(|objects| {
            let mut object = objects.held.get(&Kind::MigNode).cloned().unwrap_or_else(empty);
            object["spec"] = serde_json::to_value(spec).unwrap();
            objects.put(Kind::MigNode, object);
        });
    }

    /// The Node's resource becomes what another writer, the kubelet, says.
    pub fn set_resource(&self, name: &str, (capacity, allocatable): (u32, u32)) {
        self.change(|objects| {
            let mut node = objects.held[&Kind::Node].clone();
            node["status"]["capacity"][name] = json!(capacity.to_string());
            node["status"]["allocatable"][name] = json!(allocatable.to_string());
            objects.put(Kind::Node, node);
        });
    }

    /// The next requests fail.
    pub fn fail(&self, requests: u32) {
        self.objects().failing = requests;
    }

    /// Called for every write of the agent's, before it is answered.
    pub fn on_write(&self, call: impl Fn(&Write) + Send + 'static) {
        self.objects().on_write = Some(Box::new(call));
    }

    /// What the agent has written, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.objects().writes.clone()
    }

    /// What the agent asked for that its role does not allow.
    pub fn forbidden(&self) -> Vec<String> {
        self.objects().forbidden.clone()
    }

    pub fn status(&self) -> MIGNodeStatus {
        let object = self.objects().held.get(&Kind::MigNode).cloned();
        let read = |object| serde_json::from_value::<MIGNode>(object).unwrap().status;
        object.and_then(read).unwrap_or_default()
    }

    /// A resource of the Node: capacity and allocatable; 0 where it shows none.
    pub fn resource(&self, name: &str) -> (u32, u32) {
        let object = self.objects().held.get(&Kind::Node).cloned().unwrap_or_default();
        resource(&object, name)
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut changes = self.0.changes.subscribe();
        let wait = async {
            while !holds(self) {
                changes.changed().await.unwrap();
            }
        };
        within(what, wait).await;
    }
}

/// A resource of a Node: capacity and allocatable; 0 where it shows none.
pub fn resource(node: &Value, name: &str) -> (u32, u32) {
    let node: Node = serde_json::from_value(node.clone()).unwrap_or_default();
    let status = node.status.unwrap_or_default();
    let read = |list: Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        list.and_then(|list| list.get(name)?.0.parse().ok()).unwrap_or(0)
    };
    (read(status.capacity), read(status.allocatable))
}

fn empty() -> Value {
    json!({"apiVersion": "slicegate.dev/v1alpha1", "kind": "MIGNode", "metadata": {"name": NODE, "uid": "mn-uid"}, "spec": {}})
}

fn answer(code: StatusCode, body: &Value) -> Response {
    let body = Body::from(body.to_string());
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn refuse(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason,
        "code": code.as_u16(),
    });
    answer(code, &status)
}

async fn handle(State(server): State<ApiServer>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    {
        let mut objects = server.objects();
        if let Some(left) = objects.failing.checked_sub(1) {
            objects.failing = left;
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
    }
    let (named, status) = (format!("/{NODE}"), format!("/{NODE}/status"));
    for kind in Kind::ALL {
        let Some(rest) = path.strip_prefix(kind.path()) else { continue };
        let ours = query.contains(&format!("fieldSelector=metadata.name%3D{NODE}"));
        match (&head.method, rest) {
            (&Method::GET, "") if ours && query.contains("watch=true") => {
                return Response::new(Body::from_stream(server.follow(kind, version(query))));
            }
            (&Method::GET, "") if ours => return server.list(kind),
            (&Method::GET, rest) if *rest == *named => return server.get(kind),
            (&Method::POST, "") if kind == Kind::MigNode => return server.create(&body),
            (&Method::PATCH, rest) if *rest == *status => {
                let applied = head.headers["content-type"].to_str().unwrap().contains("apply-patch");
                return server.patch_status(kind, &body, applied);
            }
            _ => {}
        }
    }
    // What the agent tells in Events is kept by nobody.
    if path.starts_with(EVENTS) && [Method::POST, Method::PATCH].contains(&head.method) {
        return answer(StatusCode::OK, &body);
    }
    let request = format!("{} {}", head.method, head.uri);
    server.change(|objects| objects.forbidden.push(request));
    refuse(StatusCode::FORBIDDEN, "Forbidden")
}

fn version(query: &str) -> u64 {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == "resourceVersion")
        .and_then(|(_, version)| version.parse().ok())
        .unwrap_or(0)
}

impl ApiServer {
    fn list(&self, kind: Kind) -> Response {
        let objects = self.objects();
        let (group, name) = kind.types();
        let items: Vec<&Value> = objects.held.get(&kind).into_iter().collect();
        let list = json!({
            "apiVersion": group, "kind": format!("{name}List"), "items": items,
            "metadata": {"resourceVersion": objects.version.to_string()},
        });
        answer(StatusCode::OK, &list)
    }

    fn get(&self, kind: Kind) -> Response {
        match self.objects().held.get(&kind) {
            Some(object) => answer(StatusCode::OK, object),
            None => refuse(StatusCode::NOT_FOUND, "NotFound"),
        }
    }

    fn create(&self, object: &Value) -> Response {
        if self.objects().held.contains_key(&Kind::MigNode) {
            return refuse(StatusCode::CONFLICT, "AlreadyExists");
        }
        let mut made = empty();
        made["spec"] = object["spec"].clone();
        answer(StatusCode::CREATED, &self.change(|objects| objects.put(Kind::MigNode, made)))
    }

    fn patch_status(&self, kind: Kind, body: &Value, applied: bool) -> Response {
        let written = self.change(|objects| {
            let mut object = objects.held.get(&kind)?.clone();
            if applied {
                object["status"] = body["status"].clone();
            } else {
                merge(&mut object["status"], &body["status"]);
            }
            let object = objects.put(kind, object);
            let write = Write { kind, object: object.clone() };
            if let Some(call) = &objects.on_write {
                call(&write);
            }
            objects.writes.push(write);
            Some(object)
        });
        written.map_or_else(|| refuse(StatusCode::NOT_FOUND, "NotFound"), |o| answer(StatusCode::OK, &o))
    }

    fn follow(&self, kind: Kind, version: u64) -> impl Stream<Item = Result<String, Infallible>> + use<> {
        let changes = self.0.changes.subscribe();
        stream::unfold((self.clone(), changes, version), move |(server, mut changes, version)| async move {
            loop {
                let next =
                    server.objects().events.iter().find(|(v, k, _)| *v > version && *k == kind).cloned();
                if let Some((version, _, event)) = next {
                    return Some((Ok(format!("{event}\n")), (server, changes, version)));
                }
                changes.changed().await.ok()?;
            }
        })
    }
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
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(key)),
            value => merge(&mut target[key], value),
        }
    }
}
