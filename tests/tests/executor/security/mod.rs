//! Who may give orders, and what the sandbox can do with all it can read: nothing beyond itself.

mod forged_agents;
mod inside;
mod tokens;

use std::sync::Arc;

use anyhow::Result;
use opensandbox_api::labels::VERIFICATION_KEY_ENV;
use opensandbox_api::token::SigningKey;
use opensandbox_tests::Node;
use opensandbox_tests::cluster::TestNamespace;
use opensandbox_tests::executor::{ExecutorPod, Signer};
use opensandbox_tests::pods::Recipe;

/// A pod that takes orders only from who has the key.
struct Signed<'a> {
    pod: ExecutorPod<'a>,
    key: Arc<SigningKey>,
    signer: Signer,
}

impl<'a> Signed<'a> {
    /// Of this recipe, whose executor gets the public key besides.
    async fn start(
        node: &'a Node,
        namespace: &TestNamespace,
        name: &str,
        recipe: &Recipe,
    ) -> Result<Self> {
        let key = Signer::new_key()?;
        let mut recipe = recipe.clone();
        recipe
            .executor_env
            .insert(VERIFICATION_KEY_ENV.to_owned(), key.verification_key());
        let pod = ExecutorPod::start(node, namespace, name, &recipe).await?;
        let signer = Signer::new(Arc::clone(&key), pod.uid().await?);
        let pod = pod.signed(Arc::clone(&key)).await?;
        Ok(Self { pod, key, signer })
    }
}

/// The seed's recipe with the executor's own default: orders are signed.
fn recipe() -> Recipe {
    Recipe::new(["serve"])
}
