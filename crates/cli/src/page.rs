//! The coordinator's web page: where it listens, and what it is told.
//!
//! The page knows plain data alone; the coordinator knows no page. Here one becomes the other.

mod cluster;
mod telling;

use crate::arguments::PageArguments;
use crate::chronicle;
use crate::evaluation::Evaluator;
use crate::exit::Usage;
use anyhow::{Context, Result, bail};
use cluster::View;
use mcl_coordinator::{Coordinator, CoordinatorHandle, Progress};
use mcl_history::Chronicle;
use mcl_page::{Config, Page, Token};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What a coordinator prints before the page's URL.
pub(crate) const PAGE: &str = "page ";

/// A page that is bound, before there is anything to show.
pub(crate) struct Bound {
    listener: TcpListener,
    config: Config,
    url: String,
}

/// A page that is served.
pub(crate) struct Served {
    page: Page<View>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

/// Binds the page's address and reads its token, where there is to be a page; `secured`: the services want certificates.
pub(crate) async fn bind(a: &PageArguments, secured: bool) -> Result<Option<Bound>> {
    let Some(at) = a.address(secured) else { return Ok(None) };
    let loopback = at.ip().to_canonical().is_loopback();
    if !loopback && !a.page_insecure {
        bail!(Usage(format!(
            "refusing to show the page on {at}: other machines could reach it, and it is not encrypted; show it on \
             127.0.0.1 (and look at it through `ssh -L`), or on a trusted network give --page-insecure"
        )));
    }
    if let Some(path) = &a.page_token_file {
        Token::read(path).map_err(|e| Usage(e.to_string()))?;
    }
    let listener = TcpListener::bind(at)
        .await
        .with_context(|| format!("the page at {at}: choose a free port, or 0 for any, or --no-page"))?;
    let url = format!("http://{}", listener.local_addr()?);
    let config = Config { token_file: a.page_token_file.clone(), loopback };
    Ok(Some(Bound { listener, config, url }))
}

impl Bound {
    /// Where people find it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Serves it from now on, in the background, and keeps the chronicle; before the coordinator begins, so that nothing is missed.
    pub(crate) fn serve(
        self,
        coordinator: &Coordinator,
        evaluator: &Evaluator,
        chronicle: Chronicle,
    ) -> Served {
        let Self { listener, config, .. } = self;
        let view = View::new(coordinator.handle());
        let told = chronicle::told(coordinator.observe(), evaluator.results(), view.hear_of_jobs());
        let page = Page::new(view, chronicle, config);
        let following = page.clone();
        tokio::spawn(async move { following.follow(told).await });
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(mcl_page::serve(page.clone(), listener, async {
            let _ = stopped.await;
        }));
        Served { page, stop, serving }
    }
}

impl Served {
    /// Tells viewers how the run ended; what is found after that is still shown.
    pub(crate) async fn over(&self, handle: &CoordinatorHandle) {
        let last: Progress = handle.subscribe().borrow().clone();
        self.page.end(telling::last(&last)).await;
    }

    /// Tells viewers what is new, and stops.
    pub(crate) async fn end(self, handle: &CoordinatorHandle) {
        self.over(handle).await;
        let _ = self.stop.send(());
        let _ = self.serving.await;
    }
}
