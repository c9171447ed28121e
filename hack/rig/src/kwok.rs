//! KWOK: nodes and pods that exist in the API only, and behave in time as the stages say.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::control_plane::Layout;
use crate::ports::Reserved;
use crate::process::ProcessSpec;
use crate::ready::Health;

/// The annotation that marks a node as emulated.
pub const FAKE_NODE: (&str, &str) = ("kwok.x-k8s.io/node", "fake");

/// Nodes behave as KWOK's own stages say: Ready at once, a heartbeat now and then.
const NODE_STAGES: [&str; 2] = ["node/fast/node-initialize.yaml", "node/heartbeat/node-heartbeat.yaml"];

/// Pods behave as ours say.
const POD_STAGES: [(&str, &str); 3] = [
    ("pod-run.yaml", include_str!("../stages/pod-run.yaml")),
    ("pod-finish.yaml", include_str!("../stages/pod-finish.yaml")),
    ("pod-stop.yaml", include_str!("../stages/pod-stop.yaml")),
];

/// The command line of KWOK, which looks after nodes marked with [`FAKE_NODE`] and their pods only.
pub fn kwok(layout: &Layout<'_>, module: &Path) -> Result<ProcessSpec> {
    let port = Reserved::new()?.release();
    let mut spec = layout
        .program("kwok")
        .arg(layout.kubeconfig_flag())
        .arg(format!("--manage-nodes-with-annotation-selector={}={}", FAKE_NODE.0, FAKE_NODE.1))
        .arg(format!("--server-address=127.0.0.1:{port}"))
        .port(port)
        .ready_when(Health::Answers(format!("http://127.0.0.1:{port}/healthz")));
    for stage in stages(layout, module)? {
        spec = spec.arg(format!("--config={}", stage.display()));
    }
    Ok(spec)
}

fn stages(layout: &Layout<'_>, module: &Path) -> Result<Vec<PathBuf>> {
    let folder = layout.dir.join("stages");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut stages = Vec::new();
    for stage in NODE_STAGES {
        let source = module.join("kustomize/stage").join(stage);
        let file = folder.join(source.file_name().unwrap_or_default());
        let text = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
        fs::write(&file, of_marked_nodes(&text)?).with_context(|| format!("write {}", file.display()))?;
        stages.push(file);
    }
    for (name, text) in POD_STAGES {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        stages.push(file);
    }
    Ok(stages)
}

/// A stage for marked nodes only: one that loses its mark has no more than the heartbeat that is due, where KWOK itself would go
/// on with one after another.
fn of_marked_nodes(stage: &str) -> Result<String> {
    let mut stage: serde_json::Value = serde_saphyr::from_str(stage).context("read a stage of KWOK")?;
    stage["spec"]["selector"]["matchAnnotations"] = serde_json::json!({FAKE_NODE.0: FAKE_NODE.1});
    Ok(stage.to_string())
}
