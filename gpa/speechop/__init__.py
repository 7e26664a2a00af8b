"""SpeechOp at the edge: the public class with this project's own recogniser, and the commands that use it."""
