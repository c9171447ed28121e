//! `rig`: the local cluster from the command line.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use slicegate_rig::{Entry, NodeSpec, Options, Rig, State, StateFile, down, tail};

/// A local Kubernetes control plane with Kueue and emulated nodes, without containers.
#[derive(Parser)]
#[command(name = "rig", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the cluster up, if it is not up, and say where its kubeconfig is
    Up {
        #[command(flatten)]
        place: Place,
        /// YAML files with emulated nodes: documents with name, labels, cpu, memory, pods
        #[arg(long, value_name = "FILE", num_args = 1..)]
        nodes: Vec<PathBuf>,
    },
    /// End every process of the cluster and forget its data; the logs stay
    Down {
        #[command(flatten)]
        place: Place,
    },
    /// Show the cluster's processes; the exit code is 1 when one of them does not run
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Show the last lines of the logs
    Logs {
        #[command(flatten)]
        place: Place,
        /// Processes to show; all of them if none is named
        names: Vec<String>,
        /// How many lines of each
        #[arg(long, short = 'n', default_value_t = 20)]
        lines: usize,
        /// Go on showing what is written
        #[arg(long, short)]
        follow: bool,
    },
    /// Hold a real node; the rig starts this itself
    #[command(hide = true)]
    HoldNode {
        /// What to hold
        order: PathBuf,
    },
}

#[derive(Args)]
struct Place {
    /// The cluster's folder [default: .cluster/run in the repository]
    #[arg(long, value_name = "DIR", env = "RIG_DIR", hide_env = true)]
    dir: Option<PathBuf>,
}

impl Place {
    fn options(self) -> Result<Options> {
        let standing = Options::standing()?;
        Ok(match self.dir {
            Some(dir) => Options { dir, ..standing },
            None => standing,
        })
    }

    fn dir(self) -> Result<PathBuf> {
        Ok(std::path::absolute(self.options()?.dir)?)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up { place, nodes } => up(place, &nodes).await,
        Command::Down { place } => end(place).await,
        Command::Status { place } => status(place),
        Command::HoldNode { order } => {
            slicegate_rig::real_node::hold(&order).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Logs { place, names, lines, follow } => logs(place, &names, lines, follow).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn up(place: Place, files: &[PathBuf]) -> Result<ExitCode> {
    let nodes = files.iter().map(|file| read_nodes(file)).collect::<Result<Vec<_>>>()?.concat();
    let options = place.options()?;
    let dir = options.dir.clone();
    let started = Instant::now();
    let rig = tokio::select! {
        rig = Rig::up(options) => rig?,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted: what was started is ended");
            down(&dir).await?;
            bail!("interrupted");
        }
    };
    rig.add_nodes(&nodes).await?;
    if rig.was_up() {
        eprintln!("already up");
    } else {
        eprintln!("up after {:.1} s", started.elapsed().as_secs_f64());
    }
    println!("export KUBECONFIG={}", rig.kubeconfig().display());
    Ok(ExitCode::SUCCESS)
}

fn read_nodes(file: &Path) -> Result<Vec<NodeSpec>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("read nodes from {}", file.display()))
}

async fn end(place: Place) -> Result<ExitCode> {
    let ended = down(&place.dir()?).await?;
    if ended.is_empty() {
        eprintln!("nothing was running");
    } else {
        eprintln!("ended {}", ended.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn status(place: Place) -> Result<ExitCode> {
    let state = load(&place.dir()?)?;
    let logs: Vec<String> = state.processes.iter().map(|entry| entry.log.display().to_string()).collect();
    let width = state.processes.iter().map(|entry| entry.spec.name.len()).max().unwrap_or(4).max(4);
    println!("{:width$}  {:>7}  {:>5}  {:<7}  LOG", "NAME", "PID", "PORT", "STATE");
    let mut all = state.ready;
    for (entry, log) in state.processes.iter().zip(logs) {
        let running = entry.id.is_running();
        all &= running;
        let port = entry.spec.port.map_or_else(|| "-".into(), |port| port.to_string());
        let word = if running { "running" } else { "ended" };
        println!("{:width$}  {:>7}  {port:>5}  {word:<7}  {log}", entry.spec.name, entry.id.pid);
    }
    println!("\nexport KUBECONFIG={}", state.kubeconfig.display());
    if !state.ready {
        println!("the cluster has not become ready yet");
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn logs(place: Place, names: &[String], lines: usize, follow: bool) -> Result<ExitCode> {
    let entries = chosen(load(&place.dir()?)?, names)?;
    let mut positions = HashMap::new();
    for entry in &entries {
        let length = fs::metadata(&entry.log).map_or(0, |it| it.len());
        positions.insert(entry.log.clone(), length);
        println!("==> {} ({})\n{}\n", entry.spec.name, entry.log.display(), tail(&entry.log, lines));
    }
    if !follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
        for entry in &entries {
            if let Some(position) = positions.get_mut(&entry.log) {
                show_new(entry, position)?;
            }
        }
    }
}

/// Shows what a log has got since the last look, each line with the process's name before it.
fn show_new(entry: &Entry, position: &mut u64) -> Result<()> {
    let Ok(mut file) = fs::File::open(&entry.log) else { return Ok(()) };
    file.seek(SeekFrom::Start(*position))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    // A line that is still being written is shown when it is whole.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    *position += u64::try_from(whole)?;
    let mut out = std::io::stdout().lock();
    for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
        writeln!(out, "{}: {line}", entry.spec.name)?;
    }
    Ok(())
}

fn chosen(state: State, names: &[String]) -> Result<Vec<Entry>> {
    if let Some(unknown) =
        names.iter().find(|name| !state.processes.iter().any(|entry| entry.spec.name == **name))
    {
        let known: Vec<_> = state.processes.iter().map(|entry| entry.spec.name.as_str()).collect();
        bail!("no process {unknown}; there are {}", known.join(", "));
    }
    let wanted = |entry: &Entry| names.is_empty() || names.contains(&entry.spec.name);
    Ok(state.processes.into_iter().filter(wanted).collect())
}

fn load(dir: &Path) -> Result<State> {
    StateFile::new(dir).load()?.with_context(|| format!("no cluster in {}: run `rig up`", dir.display()))
}
