//! The simulator reads its configuration when it is loaded, so each scenario runs in a process of its own: this test binary,
//! called again.

use std::path::{Path, PathBuf};
use std::process::Command;

use nvml_sim::Config;

const CHILD: &str = "SLICEGATE_TEST_CHILD";

/// cargo puts the library of a dev-dependency beside the test.
pub fn library() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().join("libnvml_sim.so")
}

/// Runs `body` in a process whose simulator has this configuration. `test` is the test's name as the test runner knows it.
/// Returns what that process wrote to stderr, in this one.
pub fn scenario(
    test: &str,
    config: impl FnOnce(&Path) -> Config,
    body: impl FnOnce(&Path),
) -> Option<String> {
    if let Some(folder) = std::env::var_os(CHILD) {
        body(Path::new(&folder));
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, serde_json::to_vec(&config(folder.path())).unwrap()).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(CHILD, folder.path())
        .env("SLICEGATE_NVML_SIM_CONFIG", &file)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A name that matches no test is a success to the test runner.
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    Some(err.into_owned())
}
