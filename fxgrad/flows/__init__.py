"""What flows through a converted model at one example, as a whole: the linear map that it is, and pairs of parts."""
