//! Who asks: kubeconfigs, and service account tokens that may be bound to a node.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};

use crate::certs::write_private;

/// Longer than any cluster of this kind lives.
const LIFETIME_SECONDS: i64 = 365 * 24 * 3600;

/// Asks for a token of a service account. Bound to a node it says so in its claims
/// (`authentication.kubernetes.io/node-name`), as the token of a real node's pod does; it is void once that Node
/// object is deleted.
pub async fn token(
    client: &kube::Client,
    namespace: &str,
    account: &str,
    node: Option<&str>,
) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let bound = node.map(|name| BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: None,
    });
    let spec = TokenRequestSpec {
        audiences: None,
        bound_object_ref: bound,
        expiration_seconds: Some(LIFETIME_SECONDS),
    };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("ask for a token of service account {namespace}/{account}"))?;
    answer.status.and_then(|status| status.token).context("the server answered without a token")
}

/// Writes a kubeconfig for one token.
pub fn write_kubeconfig(file: &Path, server: &str, ca: &Path, user: &str, token: &str) -> Result<PathBuf> {
    write(file, server, ca, user, &format!("token: \"{token}\""))
}

/// Writes a kubeconfig for one client certificate.
pub fn write_certificate_kubeconfig(
    file: &Path,
    server: &str,
    ca: &Path,
    user: &str,
    (certificate, key): (&Path, &Path),
) -> Result<PathBuf> {
    let (certificate, key) = (certificate.display(), key.display());
    let credentials = format!("client-certificate: \"{certificate}\", client-key: \"{key}\"");
    write(file, server, ca, user, &credentials)
}

fn write(file: &Path, server: &str, ca: &Path, user: &str, credentials: &str) -> Result<PathBuf> {
    let ca = ca.display();
    let text = format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: rig\n  \
           cluster: {{server: \"{server}\", certificate-authority: \"{ca}\"}}\n\
         users:\n\
         - name: \"{user}\"\n  \
           user: {{{credentials}}}\n\
         contexts:\n\
         - name: rig\n  \
           context: {{cluster: rig, user: \"{user}\"}}\n\
         current-context: rig\n"
    );
    write_private(file, &text)?;
    Ok(file.to_owned())
}
