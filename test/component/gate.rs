//! The gate's webhook over real TLS: certificates that change while it is asked, kept by two replicas or by somebody else.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Parser;
use kube::{Client, Config};
use serde_json::{Value, json};
use slicegate::controller::gate::certificate::{Issued, issue};
use slicegate::controller::gate::keeper::Keeper;
use slicegate::controller::gate::rotation::Lifetimes;
use slicegate::controller::gate::shown::Shown;
use slicegate::controller::gate::{Args, Gate, review, serve};
use slicegate::runtime::Clients;
use slicegate_core::time::Timestamp;
use tempfile::TempDir;

use crate::kubelet::within;

const HOST: &str = "127.0.0.1";
/// Certificates are valid from an hour before they are made. So within an hour of a clock that runs ahead, clients with the
/// right time accept them, too.
const LIFETIMES: Lifetimes =
    Lifetimes { certificate: Duration::from_mins(30), trust: Duration::from_mins(1) };

/// An API server with one Secret and one webhook's configuration. Writes are refused where a version is not the last.
#[derive(Clone, Default)]
struct ApiServer(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    version: u64,
    secret: Option<Value>,
    configuration: Option<Value>,
    refused: u32,
}

impl Objects {
    fn stamp(&mut self, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object
    }

    fn refuse(&mut self, code: StatusCode) -> Response {
        self.refused += 1;
        let reason = code.canonical_reason().unwrap().replace(' ', "");
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code.as_u16(),
        });
        answer(code, &status)
    }
}

impl ApiServer {
    /// With the configuration as `config/webhook` has it: without a caBundle.
    fn new() -> Self {
        let server = Self::default();
        let mut objects = server.objects();
        let configuration = objects.stamp(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "gate.slicegate.dev"},
            "webhooks": [
                {"name": "other.example.com", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]},
                {"name": "gate.slicegate.dev", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]},
                {"name": "memory.slicegate.dev", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]},
            ],
        }));
        objects.configuration = Some(configuration);
        drop(objects);
        server
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap()
    }

    fn client(&self) -> Client {
        Client::new(Router::new().fallback(handle).with_state(self.clone()), "default")
    }

    fn replica(&self, shown: &Shown) -> Keeper {
        Keeper::new(&self.client(), "slicegate-system", hosts(), LIFETIMES, shown.clone())
    }

    /// What the API server is told to trust, PEM.
    fn bundle(&self) -> Option<String> {
        let objects = self.objects();
        let webhooks = &objects.configuration.as_ref()?["webhooks"];
        assert_eq!(webhooks[0]["clientConfig"], json!({}), "somebody else's");
        let bundle = &webhooks[1]["clientConfig"]["caBundle"];
        assert_eq!(webhooks[2]["clientConfig"]["caBundle"], *bundle, "all of ours have the same");
        Some(String::from_utf8(BASE64_STANDARD.decode(bundle.as_str()?).unwrap()).unwrap())
    }

    fn secret(&self, key: &str) -> Option<String> {
        let objects = self.objects();
        let value = objects.secret.as_ref()?["data"][key].as_str()?.to_owned();
        Some(String::from_utf8(BASE64_STANDARD.decode(value).unwrap()).unwrap())
    }
}

fn answer(code: StatusCode, body: &Value) -> Response {
    let body = Body::from(body.to_string());
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

async fn handle(State(server): State<ApiServer>, request: Request) -> Response {
    const SECRETS: &str = "/api/v1/namespaces/slicegate-system/secrets";
    let (head, body) = request.into_parts();
    let body: Value = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap_or_default();
    // As between processes: others have their turn between a read and the write that follows.
    tokio::task::yield_now().await;
    let mut objects = server.objects();
    let secret = head.uri.path().strip_prefix(SECRETS);
    let known = if secret.is_some() { objects.secret.clone() } else { objects.configuration.clone() };
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    match (&head.method, secret, known) {
        (&Method::GET, _, Some(object)) => answer(StatusCode::OK, &object),
        (&Method::POST, Some(""), None) => {
            let object = objects.stamp(body);
            objects.secret = Some(object.clone());
            answer(StatusCode::CREATED, &object)
        }
        (&Method::PUT, Some("/slicegate-gate"), Some(old)) if version(&old) == version(&body) => {
            let object = objects.stamp(body);
            objects.secret = Some(object.clone());
            answer(StatusCode::OK, &object)
        }
        (&Method::PATCH, None, Some(old)) if body[0]["value"] == version(&old) => {
            let mut object = old;
            for operation in &body.as_array().unwrap()[1..] {
                let path = operation["path"].as_str().unwrap();
                let webhook = path.strip_suffix("/caBundle").unwrap();
                assert_eq!(operation["op"], "add");
                object.pointer_mut(webhook).unwrap()["caBundle"] = operation["value"].clone();
            }
            let object = objects.stamp(object);
            objects.configuration = Some(object.clone());
            answer(StatusCode::OK, &object)
        }
        (&Method::PATCH, ..) => objects.refuse(StatusCode::UNPROCESSABLE_ENTITY),
        (_, _, None) => objects.refuse(StatusCode::NOT_FOUND),
        _ => objects.refuse(StatusCode::CONFLICT),
    }
}

fn hosts() -> BTreeSet<String> {
    BTreeSet::from([HOST.to_owned()])
}

fn now() -> Timestamp {
    slicegate::api::convert::now()
}

/// The webhook of one replica. It ends with the test.
fn webhook(shown: &Shown) -> SocketAddr {
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, shown, axum_server::Handle::new()).unwrap());
    address
}

/// A client that trusts these authorities and no others, as the API server does. It keeps its connection.
fn caller(address: SocketAddr, bundle: &str) -> Client {
    let mut config = Config::new(format!("https://{address}").parse().unwrap());
    let authorities = pem::parse_many(bundle).unwrap();
    config.root_cert = Some(authorities.into_iter().map(pem::Pem::into_contents).collect());
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    Client::try_from(config).unwrap()
}

/// Asks about a pod that must be gated.
async fn ask(caller: &Client) -> Result<(), String> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "userInfo": {}, "name": "p", "namespace": "default",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                "spec": {"containers": [{"name": "a", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}]},
            },
        },
    });
    let request = axum::http::Request::post(review::PATH).header("content-type", "application/json");
    let request = request.body(review.to_string().into_bytes()).unwrap();
    let answer: Value = caller.request(request).await.map_err(|error| format!("{error:?}"))?;
    if answer["response"]["patch"].is_null() { Err(answer.to_string()) } else { Ok(()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_two_replicas_are_asked_and_no_question_fails() {
    let api = ApiServer::new();
    let (leader, standby) = (Shown::default(), Shown::default());
    let (mut first, mut second) = (api.replica(&leader), api.replica(&standby));
    let start = now();
    while !(leader.is_set() && standby.is_set()) || api.bundle().is_none() {
        first.step(start).await.unwrap();
        second.step(start).await.unwrap();
    }
    let addresses = [webhook(&leader), webhook(&standby)];
    let bundle = api.bundle().unwrap();
    let standing: Vec<Client> = addresses.iter().map(|address| caller(*address, &bundle)).collect();

    let mut certificates = BTreeSet::from([api.secret("tls.crt").unwrap()]);
    let mut bundles = vec![bundle.clone()];
    let mut longest = 0;
    for turn in 0..55 * 4 {
        let time = start + Duration::from_secs(turn * 15);
        // One replica takes its time. The other looks again as often as something has changed.
        while first.step(time).await.unwrap() <= time {}
        if turn % 3 == 0 {
            while second.step(time).await.unwrap() <= time {}
        }
        let bundle = api.bundle().unwrap();
        longest = longest.max(bundle.matches("BEGIN").count());
        bundles.push(bundle);
        certificates.insert(api.secret("tls.crt").unwrap());
        // An API server that knows only what was so 45 seconds ago, on connections that are new.
        let known = &bundles[bundles.len().saturating_sub(4)];
        for address in addresses {
            let asked = ask(&caller(address, known)).await;
            asked.unwrap_or_else(|error| panic!("after {} s: {error}", turn * 15));
        }
        for caller in &standing {
            ask(caller).await.unwrap();
        }
    }
    // Made at 0, due at 20 and 41 minutes; what expired at 30 minutes is trusted no longer.
    assert_eq!(certificates.len(), 3, "three certificates were in use");
    assert_eq!(longest, 2, "two authorities at a time, and never more");
    assert!(!bundles.last().unwrap().contains(&bundle));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_come_to_one_certificate() {
    let api = ApiServer::new();
    let shown: Vec<Shown> = (0..4).map(|_| Shown::default()).collect();
    let start = now();
    let replicas = shown.iter().map(|shown| {
        let (mut keeper, shown) = (api.replica(shown), shown.clone());
        async move {
            while !shown.is_set() {
                keeper.step(start).await.unwrap();
            }
        }
    });
    within("every replica has a certificate", futures::future::join_all(replicas)).await;
    let bundle = api.bundle().unwrap();
    assert_eq!(bundle.matches("BEGIN").count(), 1);
    assert!(api.objects().refused > 0, "somebody was second");
    for shown in &shown {
        ask(&caller(webhook(shown), &bundle)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_somebody_deletes_or_spoils_is_put_back_as_the_api_server_trusts_it() {
    let api = ApiServer::new();
    let shown = Shown::default();
    let mut keeper = api.replica(&shown);
    let start = now();
    while keeper.step(start).await.unwrap() <= start || api.bundle().is_none() {}
    let before = (api.bundle(), api.secret("tls.crt"), api.secret("tls.key"));
    api.objects().secret = None;
    keeper.step(start).await.unwrap();
    assert_eq!((api.bundle(), api.secret("tls.crt"), api.secret("tls.key")), before);
    api.objects().secret.as_mut().unwrap()["data"]["tls.crt"] = json!(BASE64_STANDARD.encode("none"));
    keeper.step(start).await.unwrap();
    assert_eq!((api.bundle(), api.secret("tls.crt"), api.secret("tls.key")), before);
    // As an apply of the manifest by hand would leave it.
    api.objects().configuration.as_mut().unwrap()["webhooks"][1]["clientConfig"] = json!({});
    keeper.step(start).await.unwrap();
    assert_eq!(api.bundle(), before.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_in_files_is_taken_up_when_they_change() {
    /// As the kubelet mounts a Secret: links to a folder that is replaced as a whole.
    fn mount(folder: &Path, version: &str, issued: &Issued) {
        let data = folder.join(version);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("tls.crt"), &issued.certificate.pem).unwrap();
        std::fs::write(data.join("tls.key"), &issued.key).unwrap();
        symlink(version, folder.join("..new")).unwrap();
        std::fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
    }
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    let folder = TempDir::new().unwrap();
    let [old, new] = [0, 1].map(|_| issue(&hosts(), now(), Duration::from_hours(1)).unwrap());
    mount(folder.path(), "..1", &old);
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
    }
    let api = ApiServer::new();
    let clients = Clients { watches: api.client(), calls: api.client() };
    let dir = format!("--webhook-cert-dir={}", folder.path().display());
    let args = ["slicegate", "--gate-webhook", "--webhook-listen=127.0.0.1:0", &dir];
    let gate = Gate::start(&Cli::parse_from(args).args, &clients).await.unwrap();
    let address = gate.address().await.unwrap();
    ask(&caller(address, &old.authority.pem)).await.unwrap();
    ask(&caller(address, &new.authority.pem)).await.unwrap_err();

    mount(folder.path(), "..2", &new);
    let taken_up = async { while ask(&caller(address, &new.authority.pem)).await.is_err() {} };
    within("the new certificate is shown", taken_up).await;
    assert_eq!(api.objects().version, 1, "nothing is written where somebody else keeps the certificates");
    within("the webhook ends", gate.drain()).await;
}
