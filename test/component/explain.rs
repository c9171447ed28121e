//! `kubectl slices explain` against a cluster of given objects.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kube::Client;
use serde_json::{Value, json};
use slicegate::cli::explain::explain;

/// A client of a cluster in which the lists at these paths are these; others are empty, or not allowed.
fn cluster(lists: BTreeMap<&'static str, Vec<Value>>, forbidden: &'static str) -> Client {
    let answer = move |request: Request| {
        let path = request.uri().path().to_owned();
        let items = lists.get(path.as_str()).cloned().unwrap_or_default();
        async move { if path == forbidden { refusal() } else { list(&items) } }
    };
    Client::new(Router::new().fallback(answer), "default")
}

fn list(items: &[Value]) -> Response {
    json!({"metadata": {"resourceVersion": "9"}, "items": items}).to_string().into_response()
}

fn refusal() -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
        "message": "nodes is forbidden: User \"dev\" cannot list resource \"nodes\""});
    (StatusCode::FORBIDDEN, status.to_string()).into_response()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn node(name: &str, cpu: &str) -> Value {
    yaml(&format!(
        "{{metadata: {{name: {name}, uid: node-{name}, labels: {{kubernetes.io/hostname: {name}}}}}, spec: {{}}, \
          status: {{allocatable: {{cpu: '{cpu}', pods: '10'}}, conditions: [{{type: Ready, status: 'True'}}]}}}}"
    ))
}

/// A node with one A30, half of which is in use by a pod of the workload `job-half`.
fn mig_node(name: &str) -> Value {
    yaml(&format!(
        "
metadata: {{name: {name}, uid: mig-{name}, generation: 1, annotations: {{slicegate.dev/term: a/1}}}}
spec:
  gpus: [{{uuid: GPU-{name}, slices: [{{profile: 2g.12gb, start: 0, size: 2}}]}}]
  claims:
  - {{workload: {{namespace: team, name: job-half, uid: w-half}}, attempt: gone, podSet: main, profile: 2g.12gb, slices: 1, pods: 1}}
status:
  observedGeneration: 1
  models:
  - name: NVIDIA A30
    units: 4
    profiles:
    - {{name: 1g.6gb, id: 14, size: 1, starts: [0, 1, 2, 3], maxCount: 4, memoryMiB: 5836}}
    - {{name: 2g.12gb, id: 5, size: 2, starts: [0, 2], maxCount: 2, memoryMiB: 11848}}
    - {{name: 4g.24gb, id: 0, size: 4, starts: [0], maxCount: 1, memoryMiB: 23872}}
  gpus: [{{uuid: GPU-{name}, index: 0, model: NVIDIA A30, migMode: Enabled, health: Healthy}}]
  slices:
  - {{gpu: GPU-{name}, profile: 2g.12gb, start: 0, size: 2, state: InUse, since: '2026-11-24T10:00:00Z', pod: team/half-{name}}}
"
    ))
}

fn pod(node: &str) -> Value {
    yaml(&format!(
        "{{metadata: {{name: half-{node}, namespace: team, uid: pod-{node}, resourceVersion: '5', \
            labels: {{slicegate.dev/workload: w-half, kueue.x-k8s.io/podset: main}}}}, \
          spec: {{nodeName: {node}, nodeSelector: {{kubernetes.io/hostname: {node}}}, \
            containers: [{{name: main, resources: {{limits: {{nvidia.com/mig-2g.12gb: 1, cpu: '1'}}}}}}]}}, \
          status: {{phase: Running}}}}"
    ))
}

fn workload(name: &str, owner: &str, profile: &str, status: &str) -> Value {
    let mut workload = yaml(&format!(
        "
metadata:
  name: {name}
  namespace: team
  uid: w-{name}
  resourceVersion: '7'
  ownerReferences: [{{apiVersion: batch/v1, kind: Job, name: {owner}, uid: u-{owner}, controller: true}}]
spec:
  podSets:
  - {{name: main, count: 1, template: {{spec: {{containers: [{{name: main, resources: {{limits: {{nvidia.com/mig-{profile}: 1, cpu: '1'}}}}}}]}}}}}}
"
    ));
    workload["status"] = yaml(status);
    workload
}

const WAITS: &str = "
conditions:
- {type: QuotaReserved, status: 'True', reason: QuotaReserved, message: '', lastTransitionTime: '2099-11-24T10:00:00Z'}
admission: {clusterQueue: mig, podSetAssignments: [{name: main, count: 1, flavors: {nvidia.com/mig-4g.24gb: a30}}]}
admissionChecks:
- {name: slicegate, state: Pending, message: Being decided., lastTransitionTime: '2099-11-24T10:00:01Z', retryCount: 2}
";

fn two_halves() -> BTreeMap<&'static str, Vec<Value>> {
    const KUEUE: &str = "/apis/kueue.x-k8s.io/v1beta2/admissionchecks";
    [
        ("/api/v1/nodes", vec![node("a", "8"), node("b", "8"), node("c", "0")]),
        ("/api/v1/pods", vec![pod("a"), pod("b")]),
        ("/apis/slicegate.dev/v1alpha1/mignodes", vec![mig_node("a"), mig_node("b")]),
        (KUEUE, vec![yaml("{metadata: {name: slicegate}, spec: {controllerName: slicegate.dev/mig}}")]),
        ("/apis/kueue.x-k8s.io/v1beta2/resourceflavors", vec![yaml("{metadata: {name: a30}, spec: {}}")]),
        (
            "/apis/kueue.x-k8s.io/v1beta2/workloads",
            vec![
                workload("job-whole-1", "whole", "4g.24gb", WAITS),
                workload("job-late-1", "late", "1g.6gb", "{}"),
            ],
        ),
    ]
    .into()
}

#[tokio::test]
async fn a_workload_is_explained_node_by_node_under_its_name_or_that_of_its_job() {
    let client = cluster(two_halves(), "");
    let text = explain(&client, "team", "job-whole-1").await.unwrap();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "Workload team/job-whole-1",
            "Check slicegate: Pending. Being decided.",
            "Quota since 2099-11-24T10:00:00Z; without room it is queued again at 2099-11-24T10:04:00Z. Queued again so far: 2.",
            "",
            "Pod set main asks for 1 pod with 1 × 4g.24gb.",
            "Cause: fragmentation. Waiting for room in one piece: on the nodes of flavor a30, 1 pod with 1 × 4g.24gb would fit if \
             slices moved.",
            "One slice that moved would make room for another pod.",
            "NODE   FREE UNITS   ANOTHER POD",
            "a      2 of 4       no room for 4g.24gb",
            "b      2 of 4       no room for 4g.24gb",
        ]
    );
    assert_eq!(explain(&client, "team", "whole").await.unwrap(), text);
}

#[tokio::test]
async fn what_quotas_would_refuse_is_explained_with_its_figures() {
    let mut lists = two_halves();
    let quota = |name: &str, scopes: &str, hard: &str| {
        yaml(&format!(
            "{{metadata: {{name: {name}, namespace: team, uid: q-{name}}}, spec: {{hard: {{{hard}}}, scopes: {scopes}}}, \
              status: {{hard: {{{hard}}}, used: {{requests.cpu: 1500m, pods: '2'}}}}}}"
        ))
    };
    let ours = quota(
        "ours",
        "[]",
        "requests.nvidia.com/mig-4g.24gb: '1', requests.cpu: '2', pods: '2', services: '1'",
    );
    let deadlines = quota("deadlines", "[Terminating]", "pods: '0'");
    lists.insert("/api/v1/resourcequotas", vec![ours, deadlines]);
    let text = explain(&cluster(lists, ""), "team", "job-whole-1").await.unwrap();
    assert!(!text.contains("about to be reserved"), "{text}");
    let lines: Vec<&str> = text.lines().skip(3).take_while(|line| !line.is_empty()).collect();
    assert_eq!(
        lines,
        [
            "Cause: quota. Waiting for ResourceQuota ours: too little pods is left in namespace team, counting the pods that \
             workloads before it will create.",
            "RESOURCEQUOTA   RESOURCE                          USED   IN FLIGHT   ASKED   HARD",
            "ours            pods                              2      0           1       2      exceeded",
            "ours            requests.cpu                      2      0           1       2      exceeded",
            "ours            requests.nvidia.com/mig-4g.24gb   0      0           1       1",
        ]
    );
}

#[tokio::test]
async fn what_cannot_be_explained_is_an_error_that_says_what_to_do() {
    let client = cluster(two_halves(), "");
    let error = async |name: &str| explain(&client, "team", name).await.unwrap_err().to_string();
    assert_eq!(
        error("mistyped").await,
        "namespace \"team\" has no Workload \"mistyped\", and none of a job or pod of that name; there are: job-whole-1, job-late-1"
    );
    assert!(
        error("late").await.starts_with("Workload \"late\" in \"team\" lists no AdmissionCheck of Slicegate")
    );
    let blind = cluster(two_halves(), "/api/v1/nodes");
    let error = explain(&blind, "team", "whole").await.unwrap_err().to_string();
    assert!(
        error.starts_with("cannot list nodes in the whole cluster") && error.contains("forbidden"),
        "{error}"
    );
}
