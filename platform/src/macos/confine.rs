use crate::confine::{ConfineError, FileLimits, Files, Right, ServiceUser};

pub(crate) struct Acting;

pub(crate) fn is_supported() -> bool {
    false
}

pub(crate) fn is_single_threaded() -> bool {
    false
}

pub(crate) fn act(_: &ServiceUser) -> Result<Acting, ConfineError> {
    Err(ConfineError::Unsupported)
}

pub(crate) fn keep_only(_: Option<&ServiceUser>, _: &[Right]) -> Result<(), ConfineError> {
    Err(ConfineError::Unsupported)
}

pub(crate) fn limit_files(_: &Files) -> Result<FileLimits, ConfineError> {
    Err(ConfineError::Unsupported)
}
