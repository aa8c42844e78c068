//! l2lb
fn main() -> anyhow::Result<()> {
    for crd in l2lb::api::custom_resource_definitions() {
        println!("---\n{}", serde_norway::to_string(&crd)?);
    }
    Ok(())
}
