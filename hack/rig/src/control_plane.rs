//! etcd and Kubernetes itself: the command lines.

use std::path::Path;

use anyhow::Result;

use crate::certs::{Pki, write_private};
use crate::ports::Reserved;
use crate::process::ProcessSpec;
use crate::ready::Health;

/// With the clients' usual limits (20 and 50 requests a second) the control plane, and not what is measured on it,
/// sets every figure.
pub const QPS: u32 = 1000;
/// See [`QPS`].
pub const BURST: u32 = 2000;

/// Where things are.
pub struct Layout<'a> {
    /// The programs.
    pub programs: &'a Path,
    /// The cluster's folder.
    pub dir: &'a Path,
    /// Certificates and keys.
    pub pki: &'a Pki,
    /// The administrator's kubeconfig.
    pub kubeconfig: &'a Path,
}

impl Layout<'_> {
    /// A program of the control plane under its own name.
    pub fn program(&self, name: &str) -> ProcessSpec {
        ProcessSpec::new(name, self.programs.join(name))
    }

    /// `--kubeconfig=FILE`.
    pub fn kubeconfig_flag(&self) -> String {
        format!("--kubeconfig={}", self.kubeconfig.display())
    }
}

/// etcd, without the disk syncs that make it slow: the data does not outlive the cluster anyway.
pub fn etcd(layout: &Layout<'_>) -> Result<(ProcessSpec, String)> {
    let (clients, peers) = (Reserved::new()?, Reserved::new()?);
    let (clients, peers) = (clients.release(), peers.release());
    let url = format!("http://127.0.0.1:{clients}");
    let peer_url = format!("http://127.0.0.1:{peers}");
    let spec = layout
        .program("etcd")
        .args([
            "--name=rig".into(),
            format!("--data-dir={}", layout.dir.join("etcd").display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=rig={peer_url}"),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ])
        .port(clients)
        .ready_when(Health::Answers(format!("{url}/health")));
    Ok((spec, url))
}

/// The API server on the port that the kubeconfig already names.
pub fn apiserver(layout: &Layout<'_>, etcd: &str, port: Reserved) -> ProcessSpec {
    let pki = layout.pki;
    let port = port.release();
    let (kubelet_cert, kubelet_key) = pki.kubelet_client();
    layout
        .program("kube-apiserver")
        .args([
            format!("--etcd-servers={etcd}"),
            "--bind-address=127.0.0.1".into(),
            // An address that pods could reach does not exist; without this one it looks for an interface.
            "--advertise-address=127.0.0.1".into(),
            "--endpoint-reconciler-type=none".into(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", pki.server_cert().display()),
            format!("--tls-private-key-file={}", pki.server_key().display()),
            format!("--cert-dir={}", layout.dir.join("pki").display()),
            format!("--token-auth-file={}", pki.token_file().display()),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-signing-key-file={}", pki.token_key().display()),
            format!("--service-account-key-file={}", pki.token_public_key().display()),
            // Real nodes: kubelets come with certificates, and are called at their addresses (no DNS knows their names).
            format!("--client-ca-file={}", pki.ca_file().display()),
            format!("--kubelet-client-certificate={}", kubelet_cert.display()),
            format!("--kubelet-client-key={}", kubelet_key.display()),
            "--kubelet-preferred-address-types=InternalIP,Hostname".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
        ])
        .port(port)
        .ready_when(Health::Answers(format!("https://127.0.0.1:{port}/readyz")))
}

/// The controllers of Kubernetes: Jobs make pods, namespaces get service accounts, lost nodes are noticed.
pub fn controller_manager(layout: &Layout<'_>) -> Result<ProcessSpec> {
    let pki = layout.pki;
    Ok(with_serving(layout, "kube-controller-manager")?.args([
        format!("--kube-api-qps={QPS}"),
        format!("--kube-api-burst={BURST}"),
        "--leader-elect=false".into(),
        "--concurrent-job-syncs=20".into(),
        format!("--service-account-private-key-file={}", pki.token_key().display()),
        format!("--root-ca-file={}", pki.ca_file().display()),
    ]))
}

/// The scheduler. It takes its client's limits only from a configuration file.
pub fn scheduler(layout: &Layout<'_>) -> Result<ProcessSpec> {
    let config = layout.dir.join("kube-scheduler.yaml");
    write_private(
        &config,
        &format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\n\
             kind: KubeSchedulerConfiguration\n\
             leaderElection: {{leaderElect: false}}\n\
             clientConnection: {{kubeconfig: \"{}\", qps: {QPS}, burst: {BURST}}}\n",
            layout.kubeconfig.display()
        ),
    )?;
    Ok(with_serving(layout, "kube-scheduler")?.arg(format!("--config={}", config.display())))
}

/// What the controller manager and the scheduler have in common.
fn with_serving(layout: &Layout<'_>, name: &str) -> Result<ProcessSpec> {
    let pki = layout.pki;
    let port = Reserved::new()?.release();
    let kubeconfig = layout.kubeconfig.display();
    Ok(layout
        .program(name)
        .args([
            layout.kubeconfig_flag(),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", pki.server_cert().display()),
            format!("--tls-private-key-file={}", pki.server_key().display()),
        ])
        .port(port)
        .ready_when(Health::Answers(format!("https://127.0.0.1:{port}/healthz"))))
}
