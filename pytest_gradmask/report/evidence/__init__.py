"""What a report shows beyond an audit: figures and pictures on which no verdict rests, collected when it is over."""
