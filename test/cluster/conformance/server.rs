//! The same requests, as the API server takes them.

use anyhow::{Result, anyhow};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Method, Request};
use kube::Client;
use kube::core::{Status, WatchEvent};
use serde_json::{Value, json};
use slicegate::api::names::{CONTROLLER_MANAGER, check_manager};
use slicegate_core::sim::api_server::Guard;

use super::SEQUENCE;
use super::kinds::{MERGE, Mirrored, NODE, entry_to_json};
use super::names::Names;
use super::request::{Seen, Write};

/// An answer, or a refusal.
pub type Answer = Result<Value, Box<Status>>;
/// What a watch tells.
pub type Events = BoxStream<'static, kube::Result<WatchEvent<Value>>>;

/// The API server, for the objects of one sequence.
#[derive(Clone)]
pub struct Server {
    client: Client,
    sequence: u64,
}

impl Server {
    pub fn new(client: Client, sequence: u64) -> Self {
        Self { client, sequence }
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<Answer> {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let request =
            Request::builder().method(method).uri(path).header("Content-Type", content).body(body)?;
        match self.client.request::<Value>(request).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(kube::Error::Api(status)) => Ok(Err(status)),
            Err(error) => Err(anyhow!(error).context(path.to_owned())),
        }
    }

    fn selected<K: Mirrored>(&self, version: Option<u64>) -> String {
        let version = version.map(|version| format!("&resourceVersion={version}")).unwrap_or_default();
        format!("{}?labelSelector={SEQUENCE}%3D{}{version}", K::PATH, self.sequence)
    }

    pub async fn get<K: Mirrored>(&self, name: &str) -> Result<Answer> {
        self.send(Method::GET, &format!("{}/{name}", K::PATH), JSON, &Value::Null).await
    }

    /// All objects as of now, or with `Some(0)` as of any time.
    pub async fn list<K: Mirrored>(&self, version: Option<u64>) -> Result<Answer> {
        self.send(Method::GET, &self.selected::<K>(version), JSON, &Value::Null).await
    }

    /// All that happens after a version.
    pub async fn watch<K: Mirrored>(&self, version: u64) -> Result<Events> {
        let path = format!("{}&watch=true", self.selected::<K>(Some(version)));
        let request = Request::get(path).body(Vec::new())?;
        Ok(Box::pin(self.client.request_events::<Value>(request).await?.boxed()))
    }

    pub async fn write<K: Mirrored>(&self, names: &Names, write: &Write<K>) -> Result<Answer> {
        let object = format!("{}/{}", K::PATH, write.key().name);
        let manager = format!("fieldManager={OTHERS}");
        match write {
            Write::Create(draft) => {
                let mut metadata = json!({
                    "name": &*draft.key.name,
                    "labels": {SEQUENCE: self.sequence.to_string()},
                    "finalizers": draft.marks.finalizers.iter().map(|f| &**f).collect::<Vec<_>>(),
                });
                if !K::NAMESPACE.is_empty() {
                    metadata["namespace"] = json!(K::NAMESPACE);
                }
                let body = json!({
                    "apiVersion": K::API_VERSION,
                    "kind": K::NAME,
                    "metadata": metadata,
                    "spec": K::spec_to_json(&draft.spec),
                });
                self.send(Method::POST, &format!("{}?{manager}", K::PATH), JSON, &body).await
            }
            Write::Replace(seen, versioned, spec) => {
                let mut body = read(seen, *versioned);
                K::edit(&mut body, spec);
                self.send(Method::PUT, &format!("{object}?{manager}"), JSON, &body).await
            }
            Write::ReplaceStatus(seen, versioned, status) => {
                let mut body = read(seen, *versioned);
                merge(&mut body["status"], K::status_to_json(status));
                self.send(Method::PUT, &format!("{object}/status?{manager}"), JSON, &body).await
            }
            Write::Patch(_, guard, spec) => {
                let (content, spec) = K::patch(spec);
                let body = json!({"metadata": guarded(guard, names)?, "spec": spec});
                self.send(Method::PATCH, &format!("{object}?{manager}"), content, &body).await
            }
            Write::PatchStatus(_, guard, status) => {
                let body = json!({"metadata": guarded(guard, names)?, "status": K::status_to_json(status)});
                self.send(Method::PATCH, &format!("{object}/status?{manager}"), MERGE, &body).await
            }
            Write::Test(_, guard, spec) => {
                let mut body = tests(guard, names);
                body.push(json!({"op": "replace", "path": "/spec", "value": K::spec_to_json(spec)}));
                let path = format!("{object}?fieldManager={CONTROLLER_MANAGER}");
                self.send(Method::PATCH, &path, "application/json-patch+json", &Value::Array(body)).await
            }
            Write::Apply(key, guard, entry) => {
                let mut metadata = guarded(guard, names)?;
                metadata["name"] = json!(&*key.name);
                let body = json!({
                    "apiVersion": K::API_VERSION,
                    "kind": K::NAME,
                    "metadata": metadata,
                    "status": {"admissionChecks": [entry_to_json(entry.check, entry.state, entry.message)]},
                });
                let manager = check_manager(entry.check);
                let path = format!("{object}/status?fieldManager={manager}&force=true");
                self.send(Method::PATCH, &path, "application/apply-patch+yaml", &body).await
            }
            Write::Mark(_, guard, mark) => {
                let mut metadata = guarded(guard, names)?;
                for field in ["labels", "annotations"] {
                    metadata[field] = json!({"mark": format!("m{mark}")});
                }
                let body = json!({"metadata": metadata});
                self.send(Method::PATCH, &format!("{object}?{manager}"), MERGE, &body).await
            }
            Write::Finalizers(_, guard, wanted) => {
                let mut metadata = guarded(guard, names)?;
                metadata["finalizers"] = json!(wanted);
                let body = json!({"metadata": metadata});
                self.send(Method::PATCH, &format!("{object}?{manager}"), MERGE, &body).await
            }
            Write::Bind(key, guard) => {
                let mut metadata = guarded(guard, names)?;
                metadata["name"] = json!(&*key.name);
                let target = json!({"apiVersion": "v1", "kind": "Node", "name": NODE});
                let body =
                    json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target});
                self.send(Method::POST, &format!("{object}/binding"), JSON, &body).await
            }
            Write::Delete(_, guard) => {
                let body = json!({"preconditions": guarded(guard, names)?});
                self.send(Method::DELETE, &object, JSON, &body).await
            }
            Write::DeleteNow(_, guard) => {
                let body = json!({"preconditions": guarded(guard, names)?, "gracePeriodSeconds": 0});
                self.send(Method::DELETE, &object, JSON, &body).await
            }
        }
    }
}

/// Who writes what the controller does not.
const OTHERS: &str = "others";
const JSON: &str = "application/json";

/// What a client sends back of what it has read.
fn read<K: Mirrored>(seen: &Seen<K>, versioned: bool) -> Value {
    let mut body = seen.real.clone();
    if let Some(metadata) = body["metadata"].as_object_mut() {
        // Those that were read would be taken for a change of them.
        metadata.remove("managedFields");
        if !versioned {
            metadata.remove("resourceVersion");
        }
    }
    body
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => into.extend(from),
        (into, from) => *into = from,
    }
}

fn guarded(guard: &Guard, names: &Names) -> Result<Value> {
    let mut metadata = json!({});
    if let Guard::Body { uid, version } = guard {
        if let Some(uid) = uid {
            metadata["uid"] = json!(names.uid(uid));
        }
        if let Some(version) = version {
            metadata["resourceVersion"] = json!(names.version(*version)?.to_string());
        }
    }
    Ok(metadata)
}

fn tests(guard: &Guard, names: &Names) -> Vec<Value> {
    let Guard::Test { uid, generation } = guard else { return Vec::new() };
    let uid = uid.iter().map(|uid| ("uid", json!(names.uid(uid))));
    let generation = generation.iter().map(|generation| ("generation", json!(generation)));
    uid.chain(generation)
        .map(|(field, value)| json!({"op": "test", "path": format!("/metadata/{field}"), "value": value}))
        .collect()
}
