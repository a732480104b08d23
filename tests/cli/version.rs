use super::agentnet;

#[test]
fn the_version_is_the_packages() {
    let text = concat!("agentnet ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(agentnet(["version"]).stdout, text);
    assert_eq!(agentnet(["--version"]).stdout, text);
    assert_eq!(agentnet(["version", "--json"]).document()["version"], env!("CARGO_PKG_VERSION"));
}
