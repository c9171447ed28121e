//! The CustomResourceDefinitions as files.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::{MIGNode, SlicePolicy, SliceQuotaReport};

/// Name and content of each file in `crds/`.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser::Error> {
    Ok(vec![
        ("mignodes.yaml", yaml(&MIGNode::crd())?),
        ("slicepolicies.yaml", yaml(&SlicePolicy::crd())?),
        ("slicequotareports.yaml", yaml(&SliceQuotaReport::crd())?),
    ])
}

fn yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    let mut value = serde_json::to_value(crd).unwrap_or_default();
    drop_unsigned(&mut value);
    serde_saphyr::to_string(&value)
}

/// Removes the formats of unsigned integers, which the API server warns that it does not know.
fn drop_unsigned(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            fields.values_mut().for_each(drop_unsigned);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_unsigned),
        _ => {}
    }
}

/// All of them as one stream.
pub fn all_yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut stream = String::new();
    for (_, yaml) in files()? {
        stream.push_str("---\n");
        stream.push_str(&yaml);
    }
    Ok(stream)
}
