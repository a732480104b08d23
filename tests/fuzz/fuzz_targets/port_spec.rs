//! A port specification means the same in its normal form.
#![no_main]

use agentnet::policy::PortSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(spec) = input.parse::<PortSpec>() {
        assert_eq!(spec.to_string().parse::<PortSpec>().unwrap(), spec);
    }
});
