//! The CustomResourceDefinitions as files.

use kube::CustomResourceExt;

use super::{MIGNode, SlicePolicy};

/// Name and content of each file in `crds/`.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser::Error> {
    Ok(vec![
        ("mignodes.yaml", serde_saphyr::to_string(&MIGNode::crd())?),
        ("slicepolicies.yaml", serde_saphyr::to_string(&SlicePolicy::crd())?),
    ])
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
