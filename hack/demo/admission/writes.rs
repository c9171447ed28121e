//! Who writes what: our writes from the API server's audit log, everybody's from its metrics.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use kube::Client;
use serde::Deserialize;

/// The kinds of our writes, and why there are any.
pub const KINDS: [(&str, &str); 6] = [
    ("MIGNode spec", "the reservation: slices and claims; later the claims' end"),
    ("MIGNode status", "which slices are there, and who has them"),
    ("check", "Ready: Kueue may admit"),
    ("pod", "the pod's node is set and its gate removed, in one patch"),
    ("Node status", "slices that were made or destroyed, shown to the scheduler"),
    ("refused", "the object had changed: decided anew"),
];

/// Writes by kind. What is none of [`KINDS`] is named by verb and resource.
pub type Writes = BTreeMap<String, u64>;

/// The API server's record of our requests.
pub struct Audit {
    file: PathBuf,
    offset: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    verb: String,
    #[serde(default)]
    object_ref: Object,
    #[serde(default)]
    response_status: Status,
}

#[derive(Default, Deserialize)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

impl Audit {
    /// The record in `file`, from its beginning.
    pub fn new(file: PathBuf) -> Self {
        Self { file, offset: 0 }
    }

    /// Our writes since the last call.
    pub fn take(&mut self) -> Result<Writes> {
        let read = || format!("read {}", self.file.display());
        let mut file = BufReader::new(File::open(&self.file).with_context(read)?);
        file.seek(SeekFrom::Start(self.offset)).with_context(read)?;
        let mut writes = Writes::new();
        let mut line = String::new();
        // A line that is still being written counts next time.
        while file.read_line(&mut line).with_context(read)? > 0 && line.ends_with('\n') {
            self.offset += u64::try_from(line.len()).unwrap_or(0);
            let entry: Entry = serde_json::from_str(&line).with_context(read)?;
            // The leader's lease is renewed as time goes by, whatever there is to do.
            if entry.object_ref.resource != "leases" {
                *writes.entry(entry.kind()).or_default() += 1;
            }
            line.clear();
        }
        Ok(writes)
    }
}

impl Entry {
    fn kind(&self) -> String {
        let Object { resource, subresource } = &self.object_ref;
        if self.response_status.code >= 400 {
            return "refused".to_owned();
        }
        match (self.verb.as_str(), resource.as_str(), subresource.as_str()) {
            ("patch", "mignodes", "") => "MIGNode spec",
            ("patch", "mignodes", "status") => "MIGNode status",
            ("patch", "workloads", "status") => "check",
            ("patch", "pods", "") => "pod",
            ("patch", "nodes", "status") => "Node status",
            (verb, resource, "") => return format!("{verb} {resource}"),
            (verb, resource, sub) => return format!("{verb} {resource}/{sub}"),
        }
        .to_owned()
    }
}

/// Successful and refused writes of everybody since the API server's start, by resource and subresource.
pub async fn everybodys(client: &Client) -> Result<Writes> {
    let read = async || {
        let request = http::Request::get("/metrics").body(Vec::new()).map_err(kube::Error::HttpError)?;
        client.request_text(request).await
    };
    let text = super::until_answered(read).await.context("read the API server's metrics")?;
    Ok(count(&text))
}

fn count(metrics: &str) -> Writes {
    const WRITES: [&str; 6] = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];
    let mut writes = Writes::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
        let Some((labels, value)) = line.rsplit_once("} ") else { continue };
        let label = |name: &str| {
            let begin = format!("{name}=\"");
            let from = labels.split(',').find_map(|label| label.strip_prefix(&begin));
            from.map_or("", |value| value.trim_end_matches('"'))
        };
        if WRITES.contains(&label("verb")) {
            let (resource, sub) = (label("resource"), label("subresource"));
            let what = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
            // Prometheus' numbers are floats, and counts whole ones.
            let number = value.parse::<f64>().unwrap_or(0.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let number = number as u64;
            *writes.entry(what).or_default() += number;
        }
    }
    writes
}

/// What has been added since `before`.
pub fn since(before: &Writes, after: &Writes) -> Writes {
    let added = |(what, count): (&String, &u64)| {
        let added = count - before.get(what).copied().unwrap_or(0);
        (added > 0).then(|| (what.clone(), added))
    };
    after.iter().filter_map(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_and_reads_are_not() {
        let metrics = r#"
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="slicegate.dev",resource="mignodes",scope="resource",subresource="status",verb="APPLY",version="v1alpha1"} 12
apiserver_request_total{code="409",component="apiserver",dry_run="",group="slicegate.dev",resource="mignodes",scope="resource",subresource="status",verb="APPLY",version="v1alpha1"} 3
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="",verb="PATCH",version="v1"} 1e+06
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} 7
"#;
        let counted = count(metrics);
        assert_eq!(counted, [("mignodes/status".to_owned(), 15), ("pods".to_owned(), 1_000_000)].into());
        let before = [("mignodes/status".to_owned(), 15), ("pods".to_owned(), 999_999)].into();
        assert_eq!(since(&before, &counted), [("pods".to_owned(), 1)].into());
    }

    #[test]
    fn the_audit_log_is_read_on_from_where_it_was_left() {
        let file = std::env::temp_dir().join(format!("slicegate-audit-{}", std::process::id()));
        let line = |verb: &str, resource: &str, sub: &str, code: u16| {
            format!(
                "{{\"verb\":\"{verb}\",\"objectRef\":{{\"resource\":\"{resource}\",\"subresource\":\"{sub}\"}},\
                 \"responseStatus\":{{\"code\":{code}}}}}\n"
            )
        };
        let begun = line("patch", "mignodes", "", 200) + &line("patch", "mignodes", "", 409);
        let cut = line("patch", "pods", "", 200);
        let (head, tail) = cut.split_at(20);
        std::fs::write(&file, format!("{begun}{head}")).unwrap();
        let mut audit = Audit::new(file.clone());
        assert_eq!(audit.take().unwrap(), [("MIGNode spec".to_owned(), 1), ("refused".to_owned(), 1)].into());
        std::fs::write(&file, format!("{begun}{head}{tail}")).unwrap();
        assert_eq!(audit.take().unwrap(), [("pod".to_owned(), 1)].into());
        std::fs::remove_file(&file).unwrap();
    }
}
