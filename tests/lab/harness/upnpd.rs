//! miniupnpd, the port mapping daemon of most home routers: PCP, NAT-PMP and UPnP.
//!
//! It has nftables rules of its own beside those of the NAT; what it maps is let in by the router's firewall like
//! everything that is translated on its way in.

use std::net::Ipv4Addr;
use std::process::Command;

use super::{Internet, Program, Router, SOON, run};

/// A router's port mapping daemon; gone when dropped.
pub(crate) struct Upnpd<'lab> {
    router: &'lab Router,
    /// The address it gives.
    pub(crate) external: Ipv4Addr,
    process: Program,
}

impl<'lab> Upnpd<'lab> {
    /// Starts it. It refuses to map ports of addresses that are for documentation, which is what the lab is made of:
    /// the router is given another one for it.
    pub(crate) fn started(internet: &Internet, router: &'lab Router, pcp: bool, upnp: bool) -> Self {
        let external = internet.route_another_address(router);
        router.load_rules(
            "table inet miniupnpd {
                chain forward { type filter hook forward priority filter; jump miniupnpd; }
                chain prerouting { type nat hook prerouting priority dstnat; jump prerouting_miniupnpd; }
                chain postrouting { type nat hook postrouting priority srcnat; jump postrouting_miniupnpd; }
                chain miniupnpd { }
                chain prerouting_miniupnpd { }
                chain postrouting_miniupnpd { }
            }
            insert rule inet firewall input iifname lan accept",
        );
        let file = internet.directory().join(format!("{}.conf", router.namespace.name));
        let yes_no = |on| if on { "yes" } else { "no" };
        let settings = format!(
            "ext_ifname=wan\next_ip={external}\nlistening_ip=lan\nenable_natpmp={}\nenable_upnp={}\nsecure_mode=yes\n\
             upnp_table_name=miniupnpd\nupnp_nat_table_name=miniupnpd\n",
            yes_no(pcp),
            yes_no(upnp)
        );
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &router.namespace.name, "miniupnpd", "-d", "-f"]).arg(&file);
        command.arg("-P").arg(file.with_extension("pid"));
        let mut process = Program::spawn(&mut command);
        process.wait_for_text("listening on");
        Self { router, external, process }
    }

    /// The rules it has made for what comes in.
    pub(crate) fn mapped(&self) -> Vec<String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.router.namespace.name]);
        command.args(["nft", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"]);
        let rules = run(&mut command, SOON).ok();
        rules.lines().filter(|line| line.contains("dnat")).map(|line| line.trim().to_owned()).collect()
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        self.process.stderr() + &self.process.stdout()
    }
}
