"""What a call costs its client, beside the published 0.1.0, the OpenAI SDK, aiohttp and a bare loop."""
