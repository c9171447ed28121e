use std::collections::BTreeSet;
use std::sync::Mutex;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use prometheus::Registry;
use serde_json::{Value, json};

use slicegate_core::report::{self, Queue, Workloads, World};

use super::*;
use crate::api::kueue;
use crate::controller::index::{Index, Update};

fn about(task: &Task) -> (&'static str, &str) {
    match task {
        Task::Make { name, .. } => ("make", name),
        Task::Write { name, .. } => ("write", name),
        Task::Remove { name, .. } => ("remove", name),
    }
}

fn names_of(tasks: &[Task]) -> BTreeSet<(&'static str, &str)> {
    tasks.iter().map(about).collect()
}

fn reports(queues: &[(&str, u32)]) -> Vec<Report> {
    let queue = |pending| Queue {
        workloads: Workloads { pending, ..Workloads::default() },
        checked: true,
        ..Queue::default()
    };
    let queues = queues.iter().map(|(name, pending)| ((*name).into(), queue(*pending)));
    report::reports(Timestamp(0), &World { queues: queues.collect(), ..World::default() })
}

/// Does as the API server would.
fn done(keeper: &mut Keeper, version: u64) {
    for task in keeper.tasks(Timestamp(0)) {
        match task {
            Task::Make { name, status } | Task::Write { name, status } => {
                let mut object = SliceQuotaReport::named(&name);
                object.metadata.uid = Some(name.clone());
                object.metadata.resource_version = Some(version.to_string());
                object.status = Some(*status);
                keeper.see(Change::Apply(object));
            }
            Task::Remove { name, .. } => {
                let mut object = SliceQuotaReport::named(&name);
                object.metadata.uid = Some(name.clone());
                keeper.see(Change::Delete(object));
            }
        }
    }
}

#[test]
fn reports_are_made_written_when_they_change_and_removed() {
    let mut keeper = Keeper::default();
    keeper.want(reports(&[("a", 0), ("b", 0)]));
    assert_eq!(keeper.tasks(Timestamp(0)), [], "nobody knows yet what there is");
    keeper.see(Change::Reset(vec![SliceQuotaReport::named("old")]));
    let tasks = keeper.tasks(Timestamp(0));
    assert_eq!(names_of(&tasks), [("make", "a"), ("make", "b"), ("remove", "old")].into());
    done(&mut keeper, 1);
    keeper.see(Change::Delete(SliceQuotaReport::named("old")));
    assert_eq!(keeper.tasks(Timestamp(9_000)), [], "time alone is no reason to write");
    keeper.want(reports(&[("a", 0), ("b", 1)]));
    assert_eq!(names_of(&keeper.tasks(Timestamp(0))), [("write", "b")].into());
    done(&mut keeper, 2);
    keeper.want(reports(&[("b", 1)]));
    assert_eq!(names_of(&keeper.tasks(Timestamp(0))), [("remove", "a")].into());
    done(&mut keeper, 3);
    assert_eq!(keeper.tasks(Timestamp(0)), []);
}

#[test]
fn what_somebody_else_did_to_a_report_is_put_right() {
    let mut keeper = Keeper::default();
    keeper.see(Change::Reset(Vec::new()));
    keeper.want(reports(&[("a", 0)]));
    done(&mut keeper, 5);
    let mut object = SliceQuotaReport::named("a");
    object.metadata.uid = Some("a".to_owned());
    object.metadata.resource_version = Some("4".to_owned());
    keeper.see(Change::Apply(object.clone()));
    assert_eq!(keeper.tasks(Timestamp(0)), [], "an event of before");
    object.metadata.resource_version = Some("6".to_owned());
    keeper.see(Change::Apply(object.clone()));
    assert_eq!(names_of(&keeper.tasks(Timestamp(0))), [("write", "a")].into());
    done(&mut keeper, 7);
    keeper.see(Change::Delete(object));
    assert_eq!(names_of(&keeper.tasks(Timestamp(0))), [("make", "a")].into());
}

/// An API server that holds one report, and answers so many requests with an error first.
struct Server {
    failures: u32,
    requests: Vec<(Method, String)>,
    report: Option<Value>,
}

fn answer(server: &Mutex<Server>, method: &Method, path: &str, body: &[u8]) -> Response {
    let mut server = server.lock().unwrap();
    server.requests.push((method.clone(), path.to_owned()));
    if server.failures > 0 {
        server.failures -= 1;
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "not today"});
        return (StatusCode::INTERNAL_SERVER_ERROR, status.to_string()).into_response();
    }
    let version = server.requests.len().to_string();
    let mut report: Value = if *method == Method::DELETE {
        server.report = None;
        return json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})
            .to_string()
            .into_response();
    } else {
        serde_json::from_slice(body).unwrap()
    };
    report["metadata"]["uid"] = json!("uid");
    report["metadata"]["resourceVersion"] = json!(version);
    server.report = Some(report.clone());
    report.to_string().into_response()
}

/// Waits until something is so; a test whose time is up fails.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let so = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), so).await.unwrap_or_else(|_| panic!("{what}"));
}

/// What reports are made from when there is one ClusterQueue with so many pending workloads; without a number, none.
fn material(pending: Option<i32>) -> Material {
    let mut index = Index::default();
    let queues = pending.map(|pending| {
        let mut queue = kueue::ClusterQueue::new("q", kueue::ClusterQueueSpec::default());
        queue.status = Some(kueue::ClusterQueueStatus { pending_workloads: pending, ..Default::default() });
        queue
    });
    index.apply(Timestamp(0), Update::Queue(Change::Reset(queues.into_iter().collect())));
    Material::gather(Timestamp(0), &index, &mut BTreeMap::new())
}

#[tokio::test]
async fn a_write_that_fails_is_tried_again_and_what_is_no_news_is_not_written() {
    let server = Arc::new(Mutex::new(Server { failures: 2, requests: Vec::new(), report: None }));
    let handler = {
        let server = server.clone();
        move |request: Request| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                answer(&server, &parts.method, parts.uri.path(), &body)
            }
        }
    };
    let client = Client::new(Router::new().fallback(handler), "default");
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let hold = Hold::new(u64::MAX);
    let ((give, materials), (tell, seen)) = (mpsc::channel(1), mpsc::channel(8));
    let keeping = tokio::spawn(keep(client, metrics, hold.clone(), materials, seen));
    tell.send(Change::Reset(Vec::new())).await.unwrap();
    give.send(material(Some(3))).await.unwrap();
    let pending =
        || server.lock().unwrap().report.as_ref().map(|r| r["status"]["workloads"]["pending"].clone());
    until("the report is there in the end", || pending() == Some(json!(3))).await;
    let requests = || server.lock().unwrap().requests.len();
    let needed = requests();
    assert_eq!(needed, 4, "two that failed, the object, its status: {:?}", server.lock().unwrap().requests);
    // The same again, and then something new: of which only that is written.
    give.send(material(Some(3))).await.unwrap();
    give.send(material(Some(4))).await.unwrap();
    until("the report has followed", || pending() == Some(json!(4))).await;
    assert_eq!(requests(), needed + 1);
    // Whoever does not lead any more leaves it to others.
    hold.end();
    give.send(material(None)).await.unwrap();
    give.send(material(None)).await.unwrap();
    give.reserve().await.unwrap();
    assert_eq!(requests(), needed + 1);
    hold.extend(Duration::from_secs(u32::MAX.into()));
    until("it goes with its ClusterQueue", || server.lock().unwrap().report.is_none()).await;
    keeping.abort();
}
