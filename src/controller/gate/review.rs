//! What the API server asks the webhook, and what it is told: `admission.k8s.io/v1` AdmissionReviews over HTTP.

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use serde_json::Value;
use tracing::{debug, warn};

use super::{memory, pod};
use crate::api::gpu_memory::UNITS;

/// Where the webhook is served that gates pods, as `config/webhook/webhook.yaml` says, too.
pub const PATH: &str = "/gate";
/// Where pods are given GPU memory: in our resource, and in InstaSlice's, too.
pub const MEMORY_PATHS: [&str; 2] = ["/memory", "/memory/instaslice"];

/// The largest review that is read. The API server takes no object of more than 3 MiB (`apiserver/pkg/server/config.go`,
/// `MaxRequestBodyBytes`), and a review holds one besides a few words.
const LIMIT: usize = 4 << 20;

/// What is changed of a pod that is created, as a JSON patch.
type Change = fn(&Value) -> Option<Value>;

/// The webhook, apart from its connections.
pub fn router() -> Router {
    let [ours, both] = MEMORY_PATHS;
    Router::new()
        .route(PATH, post(async |body| answer(&body, pod::gate)))
        .route(ours, post(async |body| answer(&body, |pod| memory::charge(pod, &UNITS[..1]))))
        .route(both, post(async |body| answer(&body, |pod| memory::charge(pod, &UNITS))))
        .layer(DefaultBodyLimit::max(LIMIT))
}

fn answer(body: &Bytes, change: Change) -> impl IntoResponse + use<> {
    let review = review(body, change).into_review();
    ([(CONTENT_TYPE, "application/json")], serde_json::to_vec(&review).unwrap_or_default())
}

fn review(body: &[u8], change: Change) -> AdmissionResponse {
    let request = serde_json::from_slice::<AdmissionReview<DynamicObject>>(body)
        .map_err(|error| error.to_string())
        .and_then(|review| {
            TryInto::<AdmissionRequest<DynamicObject>>::try_into(review).map_err(|error| error.to_string())
        });
    match request {
        Ok(request) => decide(&request, change),
        Err(error) => {
            warn!(error, "not a review of a pod");
            AdmissionResponse::invalid(format!(
                "the webhook gate.slicegate.dev cannot read this review: {error}"
            ))
        }
    }
}

fn decide(request: &AdmissionRequest<DynamicObject>, change: Change) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    // Whatever the configuration sends here: only a pod that is being created can be changed so.
    let created = request.operation == Operation::Create
        && request.kind.kind == "Pod"
        && request.kind.group.is_empty()
        && request.sub_resource.is_none();
    let Some(patch) = request.object.as_ref().filter(|_| created).and_then(|object| change(&object.data))
    else {
        return response;
    };
    debug!(namespace = request.namespace, name = request.name, "changed");
    let changed = serde_json::from_value(patch)
        .map_err(|error| error.to_string())
        .and_then(|patch| response.with_patch(patch).map_err(|error| error.to_string()));
    changed.unwrap_or_else(AdmissionResponse::invalid)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(operation: &str, resource: &str) -> Value {
        let kind = if resource == "pods" { "Pod" } else { "Binding" };
        let body = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "operation": operation,
                "kind": {"group": "", "version": "v1", "kind": kind},
                "resource": {"group": "", "version": "v1", "resource": resource},
                "name": "p", "namespace": "default", "userInfo": {}, "dryRun": false,
                "object": {
                    "apiVersion": "v1", "kind": kind, "metadata": {"name": "p"},
                    "spec": {"containers": [{"name": "a", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}]},
                },
            },
        });
        serde_json::to_value(review(body.to_string().as_bytes(), pod::gate).into_review()).unwrap()
    }

    #[test]
    fn a_pod_that_is_created_is_answered_with_a_patch_under_the_uid_of_the_question() {
        let answer = ask("CREATE", "pods");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["response"]["uid"], "u-1");
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert!(answer["response"]["patch"].is_string() || answer["response"]["patch"].is_array());
    }

    #[test]
    fn what_is_no_creation_of_a_pod_is_let_through_unchanged() {
        for (operation, resource) in [("UPDATE", "pods"), ("CREATE", "bindings")] {
            let answer = ask(operation, resource);
            assert_eq!(answer["response"]["allowed"], true);
            assert_eq!(answer["response"]["patch"], Value::Null);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_reason() {
        let answer = serde_json::to_value(review(b"{", pod::gate).into_review()).unwrap();
        assert_eq!(answer["response"]["allowed"], false);
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert!(message.starts_with("the webhook gate.slicegate.dev cannot read"), "{message}");
    }
}
