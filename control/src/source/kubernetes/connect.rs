//! The way to the API server.
#![forbid(unsafe_code)]

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::KubernetesSettings;

/// Longest time to open a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// The API cannot be followed as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("source.kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// Neither a kubeconfig is set, nor does this process run in a pod.
    #[error("not in a pod with a service account ({0}); outside of one, set source.kubeconfig")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The URL is none.
    #[error("source.api_server {0:?} is not a URL, as https://10.0.0.1:6443")]
    Url(String),
    /// Keys or certificates cannot be used.
    #[error("access to the Kubernetes API: {0}")]
    Client(#[source] Box<kube::Error>),
    /// No thread, or no event loop for it.
    #[error("thread of the source: {0}")]
    Thread(#[source] std::io::Error),
}

/// A client for the API server; nothing is sent yet.
///
/// # Errors
/// What the settings name cannot be used.
pub async fn connect(settings: &KubernetesSettings) -> Result<Client, ConnectError> {
    client(configuration(settings).await?)
}

/// A client by a [`configuration`].
pub(crate) fn client(config: Config) -> Result<Client, ConnectError> {
    Client::try_from(config).map_err(|e| ConnectError::Client(Box::new(e)))
}

/// Address and credentials as the settings say.
pub(crate) async fn configuration(settings: &KubernetesSettings) -> Result<Config, ConnectError> {
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let fail = |source| ConnectError::Kubeconfig {
                path: path.display().to_string(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(fail)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(fail)?
        }
        None if settings.api_server.is_some() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() => {
            // A pod on the host's network that names its API server need not know the Service.
            Config::incluster_dns().map_err(|e| ConnectError::InCluster(Box::new(e)))?
        }
        None => Config::incluster().map_err(|e| ConnectError::InCluster(Box::new(e)))?,
    };
    if let Some(url) = &settings.api_server {
        let wrong = || ConnectError::Url(url.clone());
        config.cluster_url = url.parse().map_err(|_| wrong())?;
        if config.cluster_url.scheme().is_none() || config.cluster_url.host().is_none() {
            return Err(wrong());
        }
    }
    config.connect_timeout = Some(CONNECT);
    // Each request has its own limit, and what fails is tried again by our own rule.
    config.default_retry = false;
    Ok(config)
}
