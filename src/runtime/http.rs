//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::{Registry, TextEncoder};

use super::Ready;

/// Serves health and metrics for as long as the process runs.
pub async fn serve(address: SocketAddr, registry: Registry, ready: Ready) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|e| {
        std::io::Error::new(e.kind(), format!("cannot listen on {address} for health and metrics: {e}"))
    })?;
    axum::serve(listener, router(registry, ready)).await
}

/// The routes, apart from the listener, so that tests can call them.
pub fn router(registry: Registry, ready: Ready) -> Router {
    Router::new()
        // Being alive is all that this says: a process that waits for the API server must not be killed for it.
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if ready.is_ready() {
                    let role = ready.role().map(|role| format!(" ({role})")).unwrap_or_default();
                    (StatusCode::OK, format!("ok{role}\n"))
                } else {
                    let missing = ready.missing().join(", ");
                    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {missing}\n"))
                }
            }),
        )
        .route(
            "/metrics",
            get(move || async move {
                TextEncoder::new()
                    .encode_to_string(&registry.gather())
                    .map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
            }),
        )
}
