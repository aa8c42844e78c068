//! The one tokio runtime of the lab, for callers that are ordinary threads.

use std::future::Future;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Handle, Runtime};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// The lab's runtime, started at the first call. It must not start before [`crate::sandbox::enter`].
///
/// # Errors
/// When its threads cannot be started.
pub fn handle() -> Result<Handle> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle().clone());
    }
    let made = Builder::new_multi_thread()
        .worker_threads(4)
        .thread_name("lab")
        .enable_all()
        .build()
        .context("cannot start the lab's runtime")?;
    Ok(RUNTIME.get_or_init(|| made).handle().clone())
}

/// Runs a future to its end on the lab's runtime. Not for use in async code.
///
/// # Errors
/// What the future returned, or that the runtime cannot be started.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    handle()?.block_on(future)
}
