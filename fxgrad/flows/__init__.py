"""What flows where: the balanced backward as the linear map that it is at one example, from cut to cut and whole."""
