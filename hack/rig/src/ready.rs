//! Waiting for a condition, never for a time, and saying what went wrong when it does not come.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::Process;

const POLL: Duration = Duration::from_millis(50);
/// How long one part may take. A loaded machine is slow; a part that has ended is noticed at once.
const LIMIT: Duration = Duration::from_secs(90);

/// What tells that a process is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// A health address answers with success. For https the cluster's authority is trusted.
    Answers(String),
    /// A loopback port accepts connections.
    Listens(u16),
}

impl fmt::Display for Health {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answers(url) => out.write_str(url),
            Self::Listens(port) => write!(out, "port {port}"),
        }
    }
}

/// A health address or port, ready to be asked again and again.
enum Question {
    Get(Box<kube::Client>, String),
    Connect(u16),
}

impl Health {
    fn question(&self, ca: &Path) -> Result<Question> {
        match self {
            Self::Answers(url) => {
                let uri: http::Uri = url.parse().with_context(|| format!("read the address {url}"))?;
                let path = uri.path().to_owned();
                let tls = uri.scheme_str() == Some("https");
                let mut parts = uri.into_parts();
                parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
                let mut config = kube::Config::new(http::Uri::from_parts(parts)?);
                config.connect_timeout = Some(Duration::from_secs(2));
                config.read_timeout = Some(Duration::from_secs(5));
                config.default_retry = false;
                if tls {
                    config.root_cert_file = Some(ca.to_owned());
                }
                Ok(Question::Get(Box::new(kube::Client::try_from(config)?), path))
            }
            Self::Listens(port) => Ok(Question::Connect(*port)),
        }
    }
}

impl Question {
    async fn ask(&self) -> Result<()> {
        match self {
            Self::Get(client, path) => {
                client.request_text(http::Request::get(path).body(Vec::new())?).await?;
            }
            Self::Connect(port) => {
                tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?;
            }
        }
        Ok(())
    }
}

/// Waits until a process is ready. The error names the process, its log file and the log's last lines.
pub async fn until_ready(process: &Process, ca: &Path) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    for health in &process.spec().health {
        let question = health.question(ca)?;
        while let Err(error) = question.ask().await {
            if !process.is_running() {
                bail!(failure(process, "ended before it was ready"));
            }
            if Instant::now() >= deadline {
                let waited = format!("was not ready after {} s: {health}: {error:#}", LIMIT.as_secs());
                bail!(failure(process, &waited));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

fn failure(process: &Process, what: &str) -> String {
    let (name, log) = (process.name(), process.log_path().display());
    format!("{name} {what}\nits log is {log}; the last lines are\n{}", process.log_tail(20))
}
