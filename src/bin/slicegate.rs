//! `slicegate`: controller, node agent, simulation, CRDs.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use prometheus::Registry;
use slicegate::cli::simulate;
use slicegate::runtime::{self, Clients, LogFormat, Ready};
use slicegate::{agent, api, controller};

/// Reserves exact NVIDIA MIG slices before Kueue admits a workload.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How to write logs; RUST_LOG says what.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Decide which workload gets which slices (one leads; others stand by).
    Controller {
        #[command(flatten)]
        args: Box<controller::Args>,
        /// Where to serve /healthz, /readyz and /metrics.
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
    },
    /// Make and report the slices of one node (one per GPU node).
    Agent {
        #[command(flatten)]
        args: Box<agent::Args>,
        /// Where to serve /healthz, /readyz and /metrics.
        #[arg(long, default_value = "0.0.0.0:8081")]
        listen: SocketAddr,
    },
    /// Try the placement engine on recorded or drawn demand, with no cluster to change; or ask what would fit.
    Simulate {
        #[command(flatten)]
        args: Box<simulate::Args>,
    },
    /// Print the CustomResourceDefinitions.
    Crds,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match Box::pin(run(cli)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            let simulation = error.downcast_ref::<simulate::Error>();
            simulation.map_or(ExitCode::FAILURE, |error| ExitCode::from(error.exit_code()))
        }
    }
}

fn print(text: &str) -> Result<(), std::io::Error> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader of a pipe has had enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

async fn run(cli: Cli) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    match cli.command {
        Command::Simulate { args } => print(&simulate::run(*args).await?)?,
        Command::Crds => print!("{}", api::crds::all_yaml()?),
        Command::Controller { args, listen } => {
            runtime::init_logs(cli.log_format);
            let (registry, ready) = (Registry::new(), Ready::default());
            let metrics = Arc::new(controller::Metrics::new(&registry)?);
            let clients = Clients::infer().await?;
            tokio::select! {
                result = runtime::serve(listen, registry, ready.clone()) => result?,
                result = control(*args, clients, metrics, ready) => result?,
            }
        }
        Command::Agent { args, listen } => {
            runtime::init_logs(cli.log_format);
            let (registry, ready) = (Registry::new(), Ready::default());
            let metrics = Arc::new(agent::Metrics::new(&registry)?);
            let clients = Clients::infer().await?;
            tokio::select! {
                result = runtime::serve(listen, registry, ready.clone()) => result?,
                result = agent::run(*args, clients, metrics, ready, runtime::shutdown_signal()) => result?,
            }
        }
    }
    Ok(())
}

/// The controller, and the gate's webhook beside it for as long as it runs and a little longer.
async fn control(
    args: controller::Args,
    clients: Clients,
    metrics: Arc<controller::Metrics>,
    ready: Ready,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut gate = controller::gate::Gate::start(&args.gate, &clients).await?;
    tokio::select! {
        result = controller::run(args, clients, metrics, ready, runtime::shutdown_signal()) => result?,
        error = gate.failed() => return Err(error.into()),
    }
    gate.drain().await;
    Ok(())
}
